"""Optical flow as an input: stacks of five fields as TSM's flow stream sees them.

Enters: the frames that stacks are made of, in groups of six neighbours. Leaves: uint8
[T, H, W, 10], the fields x1, y1 ... x5, y5 of each group. Decode processes compute them; nothing
here needs torch.

Source: TSM, https://arxiv.org/abs/1811.08383, with github.com/mit-han-lab/temporal-shift-module:
`new_length` 5, starts in the middles of the segments of those that leave room for five fields, the
last field again where a clip is shorter (ops/dataset.py). Bytes as of denseflow, which mmaction2
makes its flow images with: -20 to 20 px become 0 to 255, rounded. Mean and spread are 128, as in
mmaction2's tsn_imagenet-pretrained-r50_8xb32_5x1x3-110e_kinetics400-flow.

Deviation: fields are OpenCV's DIS (medium preset), where TSM has TV-L1. At 340 x 256 px a field
took 0.02 s against TV-L1's 0.9 s on one core, so 0.9 s and 35 s for the 40 fields of a clip, which
would make Diving48 a week on one core; and DIS is in OpenCV itself, TV-L1 in its contrib modules.
Both found a shift of (-5, 3) px to 0.01 px.
Choice: fields are of frames that are scaled to the backbone's input already, as of videos that were
scaled to 340 x 256 beforehand, so 20 px are of the scaled frame.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.extract.pipelines import find_opencv

Modality = Literal["rgb", "flow"]

NUM_FIELDS = 5
NUM_FRAMES = NUM_FIELDS + 1  # of a stack
NUM_CHANNELS = 2 * NUM_FIELDS
BOUND_PX = 20.0
MEAN = (128.0,) * NUM_CHANNELS
STD = (128.0,) * NUM_CHANNELS
_MEDIUM = 2  # cv2.DISOPTICAL_FLOW_PRESET_MEDIUM


def count_starts(num_frames: int) -> int:
    """From how many frames of a clip a whole stack can start; 1 where it is too short for any."""
    return max(1, num_frames - NUM_FIELDS)


def stack_frames(starts: np.ndarray, num_frames: int) -> np.ndarray:
    """The frames of the stacks that begin at `starts`: int64 [T * 6], none beyond the clip's end.

    >>> stack_frames(np.array([0, 7]), 10).tolist()
    [0, 1, 2, 3, 4, 5, 7, 8, 9, 9, 9, 9]
    """
    frames = np.asarray(starts, np.int64)[:, None] + np.arange(NUM_FRAMES)
    return np.minimum(frames, num_frames - 1).ravel()


def to_bytes(field: np.ndarray) -> np.ndarray:
    """Pixels of motion as bytes: round(255 (v + 20) / 40), cut at 0 and 255.

    >>> to_bytes(np.array([-25.0, -20.0, 0.0, 2.0, 20.0])).tolist()
    [0, 0, 128, 140, 255]
    """
    scaled = 255.0 * (field.astype(np.float64) + BOUND_PX) / (2.0 * BOUND_PX)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


class FlowStacks:
    """Stacks of fields of the decoded frames of one video; each field is computed once.

    Args:
        frames: uint8 [N, H, W, 3], RGB.
        numbers: Their frame numbers, ascending.

    Raises:
        UserError: OpenCV can't be loaded.
    """

    def __init__(self, frames: np.ndarray, numbers: np.ndarray) -> None:
        opencv = _require_opencv()
        self._numbers = numbers
        self._grey = [opencv.cvtColor(frame, opencv.COLOR_RGB2GRAY) for frame in frames]
        self._method = opencv.DISOpticalFlow_create(_MEDIUM)
        self._fields: dict[tuple[int, int], np.ndarray] = {}

    def stack(self, indices: np.ndarray) -> np.ndarray:
        """Stacks uint8 [T, H, W, 10] of frame numbers [T * 6], see `stack_frames`."""
        places = np.searchsorted(self._numbers, indices).reshape(-1, NUM_FRAMES)
        return np.stack([self._one(group.tolist()) for group in places])

    def _one(self, places: list[int]) -> np.ndarray:
        fields: list[np.ndarray] = []
        for first, second in zip(places, places[1:], strict=False):
            is_over = first == second
            fields.append(fields[-1] if is_over and fields else self._field(first, second))
        return np.concatenate(fields, axis=-1)

    def _field(self, first: int, second: int) -> np.ndarray:
        """Field uint8 [H, W, 2], x and y."""
        key = (first, second)
        if key not in self._fields:
            motion = self._method.calc(self._grey[first], self._grey[second], None)
            self._fields[key] = to_bytes(motion)
        return self._fields[key]


def mirror(stacks: np.ndarray) -> np.ndarray:
    """Stacks uint8 [T, H, W, 10] left to right: x changes its sign, as in mmaction2's Flip."""
    mirrored = stacks[:, :, ::-1].copy()
    mirrored[..., 0::2] = 255 - mirrored[..., 0::2]
    return mirrored


def as_pictures(frames: np.ndarray) -> np.ndarray:
    """What people are shown, uint8 [..., 3]: frames as they are, of stacks the first field.

    Its x is red, its y is green, as in the files of TSM's repository.
    """
    if frames.shape[-1] != NUM_CHANNELS:
        return frames
    blue = np.full((*frames.shape[:-1], 1), 128, np.uint8)
    return np.concatenate([frames[..., :2], blue], axis=-1)


def describe_flow() -> dict[str, Any]:
    """For a store's fingerprint."""
    return {
        "method": f"DIS, medium preset, OpenCV {_require_opencv().__version__}",
        "num_fields": NUM_FIELDS,
        "bound_px": BOUND_PX,
        "frames": "scaled",
    }


def _require_opencv() -> Any:
    opencv = find_opencv()
    if opencv is None:
        raise UserError(
            "backbone.input is flow, and OpenCV, which computes it, can't be loaded; install "
            "opencv-python and the system libraries that it names, or set backbone.input to rgb"
        )
    return opencv
