"""A recognizer's own test pipeline: which frames it sees, how they are scaled, cut and normalised.

Enters: the `test_pipeline` and the data preprocessor of an mmaction2 config. Leaves: a `Pipeline`,
plain values that a decode process can be sent, and what it does with frames by them. What is not
understood is an error: a transform that were left out would make other features in silence. Nothing
here needs torch.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.clips.sampling import SAMPLERS

_CROPS = ("CenterCrop", "ThreeCrop", "TenCrop")  # how many squares there are is a setting here
# Opening and decoding are ours; packing has no part in the pixels.
_NOT_PIXELS = {"DecordInit", "DecordDecode", "RawFrameDecode", "PackActionInputs"}
_NOT_PIXELS |= {"OpenCVInit", "OpenCVDecode", "PyAVInit", "PyAVDecode", "FormatShape"}
_SAMPLERS = {"SampleFrames": "dense", "UniformSample": "mmaction_uniform"}
_POSITIONS = "dense_positions"  # mmaction2's DenseSampleFrames
Scaling = Literal["opencv", "bilinear", "bicubic", "pillow_bilinear", "pillow_bicubic"]
_INTERPOLATIONS: Mapping[Scaling, str] = MappingProxyType(
    {
        "opencv": "bilinear, OpenCV",
        "bilinear": "bilinear, antialiased",
        "bicubic": "bicubic, antialiased",
        "pillow_bilinear": "bilinear, Pillow",
        "pillow_bicubic": "bicubic, Pillow",
    }
)
_MOST_SAMPLES = {"swin_uniform": 1}


@dataclass(frozen=True)
class Pipeline:
    """What a recognizer is fed at test time.

    Attributes:
        sampler, options: A rule of `clips.sampling` with its options, or "dense_positions".
        num_frames: T, frames of one view.
        resize_px: What the shorter side is scaled to.
        size_px: Side of the squares that are cut.
        scaling: How, and where the middle is: "opencv", mmaction2's bilinear rule; "bilinear" or
            "bicubic" with antialiasing, the transformers library's; the same with "pillow_" before
            it, torchvision's with pictures of Pillow, by which timm's models are fed.
        squeezes: Whether both sides are scaled to `resize_px`, whatever the frame's shape.
        mean, std: Per channel of the recognizer's input, on the 0..255 scale.
        is_bgr: Whether the recognizer expects blue first.
    """

    sampler: str
    options: Mapping[str, Any] = field(hash=False)
    num_frames: int
    resize_px: int
    size_px: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    is_bgr: bool = False
    scaling: Scaling = "opencv"
    squeezes: bool = False

    def sample(self, num_frames: int, fps: float | None = None) -> np.ndarray:
        """Frame numbers int64 [clips, T] of a clip of `num_frames` frames, from 0.

        Args:
            fps: Of the video; only rules with `target_fps` look at it.
        """
        if self.sampler == _POSITIONS:
            frames = _sample_positions(num_frames, **self.options)
        else:
            timed = {"fps": fps} if self.options.get("target_fps") else {}
            frames = SAMPLERS[self.sampler](num_frames, **self.options, **timed)
        return frames.reshape(-1, self.num_frames)

    def resized(self, *, num_frames: int | None = None, size_px: int | None = None) -> Pipeline:
        """The same for another input: T frames, squares of `size_px`, scaled in proportion."""
        changed = self
        if size_px is not None and size_px != self.size_px:
            resize_px = round(self.resize_px * size_px / self.size_px)
            changed = replace(changed, size_px=size_px, resize_px=resize_px)
        if num_frames is not None and num_frames != self.num_frames:
            name = "clip_len" if self.options["clip_len"] > 1 else "num_clips"
            options = {**self.options, name: num_frames}
            changed = replace(changed, num_frames=num_frames, options=options)
        return changed

    def at_interval(self, frame_interval: int | None) -> Pipeline:
        """The same with frames that follow each other at `frame_interval`, the last one repeated
        where a clip is short; None: as it is."""
        if frame_interval is None:
            return self
        dense = {"frame_interval": frame_interval, "out_of_bound": "repeat_last"}
        return replace(self, sampler="dense", options={**self.options, **dense})

    def with_views(self, num_clips: int = 1) -> Pipeline:
        """The same with another number of samples of frames.

        Raises:
            SettingsError: The rule of sampling cannot take so many.
        """
        options = dict(self.options)
        takes_frames = self.sampler == "dense" and options["clip_len"] == 1
        if self.sampler == _POSITIONS:
            options["num_positions"] = num_clips
        elif takes_frames:  # each sample is T single frames: in their segments' middles, at starts
            options["twice_sample"] = num_clips == 2
        else:
            options.pop("twice_sample", None)
            options["num_clips"] = num_clips
        most = 2 if takes_frames else _MOST_SAMPLES.get(self.sampler, num_clips)
        if num_clips > most:
            raise SettingsError(
                f"backbone.views: {num_clips} clips; this backbone's sampling ({self.sampler}) "
                f"gives 1 to {most} clips"
            )
        return replace(self, options=options)

    def describe(self) -> dict[str, Any]:
        """Which pixels are taken, as plain JSON values; the rest is in `describe_input`."""
        return {
            "sampling": {"rule": self.sampler, **self.options, "num_frames": self.num_frames},
            "resize_px": [self.resize_px] * 2 if self.squeezes else self.resize_px,
            "interpolation": _INTERPOLATIONS[self.scaling],
            "crop_px": self.size_px,
            "crops": "centre",  # `Views` says how many squares; fingerprints have always named this
        }

    def describe_input(self) -> dict[str, Any]:
        """What a model makes of the frames it is given, as plain JSON values."""
        return {
            "num_frames": self.num_frames,
            "size_px": self.size_px,
            "mean": list(self.mean),
            "std": list(self.std),
            "is_bgr": self.is_bgr,
        }


def read_pipeline(
    transforms: Sequence[Mapping[str, Any]], preprocessor: Mapping[str, Any], *, source: str
) -> Pipeline:
    """The `Pipeline` of an mmaction2 test pipeline and its `ActionDataPreprocessor`.

    Args:
        source: The config's name, for messages.

    Raises:
        SettingsError: A transform is not one that can be done here exactly.
    """
    values: dict[str, Any] = {}
    for transform in transforms:
        options = dict(transform)
        kind = options.pop("type")
        if kind in (*_SAMPLERS, "DenseSampleFrames"):
            values |= _read_sampling(kind, options, source)
        elif kind == "Resize":
            values["resize_px"] = _read_resize(options, source)
        elif kind in _CROPS:
            values["size_px"] = _read_square(options["crop_size"], source)
        elif kind not in _NOT_PIXELS:
            raise SettingsError(
                f"{source}: its test pipeline has {kind}, which extraction cannot do; expected "
                "frame sampling, Resize and a crop: change the config's test_pipeline"
            )
    missing = {"sampler", "resize_px", "size_px"} - values.keys()
    if missing:
        raise SettingsError(
            f"{source}: its test pipeline gives no {', '.join(sorted(missing))}; expected frame "
            "sampling, Resize and a crop"
        )
    return Pipeline(**values, **_read_pixels(preprocessor, source))


def _read_sampling(kind: str, options: dict[str, Any], source: str) -> dict[str, Any]:
    if not options.pop("test_mode", False):
        raise SettingsError(f"{source}: {kind} of its test pipeline is random; set test_mode=True")
    options = {"num_clips": 1, **options}
    if "out_of_bound_opt" in options:
        options["out_of_bound"] = options.pop("out_of_bound_opt")
    if kind == "DenseSampleFrames":
        sampler = _POSITIONS
        options["num_positions"] = options.pop("num_sample_positions", 10)
    else:
        sampler = _SAMPLERS[kind]
    length = options["clip_len"] if options["clip_len"] > 1 else options["num_clips"]
    return {"sampler": sampler, "options": options, "num_frames": length}


def _read_resize(options: dict[str, Any], source: str) -> int:
    scale = options.pop("scale", None)
    plain = {"keep_ratio": True, "interpolation": "bilinear", "lazy": False}
    is_plain = all(plain.get(name) == value for name, value in options.items())
    if not is_plain or not isinstance(scale, tuple | list) or min(scale) != -1:
        raise SettingsError(
            f"{source}: Resize(scale={scale}, {options}) is not the bilinear scaling of the "
            "shorter side that extraction does; expected scale=(-1, pixels)"
        )
    return int(max(scale))


def _read_square(crop_size: Any, source: str) -> int:
    sides = {crop_size} if isinstance(crop_size, int) else set(crop_size)
    if len(sides) != 1:
        raise SettingsError(f"{source}: crops of {crop_size} px are no squares, expected squares")
    return int(sides.pop())


def _read_pixels(preprocessor: Mapping[str, Any], source: str) -> dict[str, Any]:
    mean = preprocessor.get("mean") or (0.0, 0.0, 0.0)
    std = preprocessor.get("std") or (1.0, 1.0, 1.0)
    if len(mean) != 3:
        raise SettingsError(
            f"{source}: it normalises {len(mean)} channels, expected the 3 of RGB frames; its "
            "optical flow is not extracted: name a config of RGB frames, and set backbone.input to "
            "flow"
        )
    return {
        "mean": tuple(float(value) for value in mean),
        "std": tuple(float(value) for value in std),
        "is_bgr": bool(preprocessor.get("to_rgb", False)),  # mmaction2 swaps what is RGB already
    }


def _sample_positions(
    num_frames: int,
    *,
    clip_len: int,
    num_clips: int,
    frame_interval: int = 1,
    sample_range: int = 64,
    num_positions: int = 10,
) -> np.ndarray:
    """mmaction2's DenseSampleFrames at test: `num_positions` starts, equally far apart.

    From each start s, clip i begins at (s + i * (sample_range // num_clips)) mod n; frames beyond
    the end start over. One position alone is the middle one (mmaction2 would take the first).
    """
    last = max(0, num_frames - sample_range)
    if num_positions == 1:
        starts = np.array([last // 2])
    else:
        starts = np.linspace(0, last, num=num_positions, dtype=int)
    offsets = np.arange(num_clips) * (sample_range // num_clips)
    begins = (starts[:, None] + offsets).ravel() % num_frames
    return (begins[:, None] + np.arange(clip_len) * frame_interval) % num_frames


# ---- scaling, bit for bit as OpenCV does it, and cutting ----------------------------------------
#
# mmaction2 scales frames with OpenCV's `INTER_LINEAR`; published weights expect that. Where OpenCV
# cannot be loaded, the same arithmetic in numpy takes its place, so a store's bytes do not depend
# on which one ran.

_WEIGHT_BITS = 11  # OpenCV's INTER_RESIZE_COEF_BITS


def scaled_size(width: int, height: int, shorter_px: int) -> tuple[int, int]:
    """Width and height once the shorter side is `shorter_px`, rounded as mmcv rounds.

    >>> scaled_size(340, 256, 224)
    (298, 224)
    """
    scale = shorter_px / min(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def scale_frames(
    frames: np.ndarray, scaling: Scaling, shorter_px: int, *, squeezes: bool = False
) -> np.ndarray:
    """Frames uint8 [T, H, W, 3], their shorter side scaled to `shorter_px`.

    Args:
        squeezes: Both sides become `shorter_px`.
    """
    height, width = frames.shape[1:3]
    width, height = choose_size(width, height, scaling, shorter_px, squeezes=squeezes)
    if scaling == "opencv":
        return resize_frames(frames, width, height)
    return resize_smoothly(frames, width, height, scaling)


def choose_size(
    width: int, height: int, scaling: Scaling, shorter_px: int, *, squeezes: bool = False
) -> tuple[int, int]:
    """Width and height of frames that `scale_frames` scaled."""
    if squeezes:
        return shorter_px, shorter_px
    if scaling == "opencv":
        return scaled_size(width, height, shorter_px)
    shorter = min(width, height)  # torchvision cuts off what is left of a pixel, transformers too
    return int(shorter_px * width / shorter), int(shorter_px * height / shorter)


def resize_frames(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] at `width` x `height`: uint8 [T, height, width, 3]."""
    if frames.shape[1:3] == (height, width):
        return frames
    opencv = find_opencv()
    if opencv is None:
        return resize_by_numpy(frames, width, height)
    resized = [opencv.resize(frame, (width, height), interpolation=1) for frame in frames]
    return np.stack(resized)


def cut_square(
    frames: np.ndarray, size_px: int, crop: int, scaling: Scaling | None = None
) -> np.ndarray:
    """Square number `crop` of three along the longer side, as mmaction2's ThreeCrop cuts it.

    Args:
        frames: [T, H, W, 3], both sides at least `size_px`.
        crop: 0 (left or top), 1 (the middle) or 2.
        scaling: Of the frames. The middle of an odd margin is rounded down, as mmaction2 and the
            transformers library do; with "pillow_..." to the even pixel, as torchvision does.
    """
    free_height, free_width = (length - size_px for length in frames.shape[1:3])
    is_torchvisions = scaling is not None and scaling.startswith("pillow")
    top = round(free_height / 2) if is_torchvisions else free_height // 2
    left = round(free_width / 2) if is_torchvisions else free_width // 2
    if crop != 1 and free_width >= free_height:
        left = free_width // 2 * crop
    elif crop != 1:
        top = free_height // 2 * crop
    return frames[:, top : top + size_px, left : left + size_px]


def resize_by_numpy(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """What `resize_frames` does, in numpy: weights are whole numbers of 11 bits.

    Rows are weighted across first and lose 4 bits; the two rows lose 16 bits each before they are
    added, and the last 2 bits are rounded.
    """
    left, right, from_left, from_right = weigh(frames.shape[2], width)
    upper, lower, from_upper, from_lower = weigh(frames.shape[1], height)
    resized = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    for row, frame in zip(resized, frames.astype(np.int32), strict=True):
        across = frame[:, left] * from_left[:, None] + frame[:, right] * from_right[:, None]
        across >>= 4
        above = (from_upper[:, None, None] * across[upper]) >> 16
        below = (from_lower[:, None, None] * across[lower]) >> 16
        row[:] = ((above + below + 2) >> 2).clip(0, 255)
    return resized


def weigh(length: int, wanted: int) -> tuple[np.ndarray, ...]:
    """For each of `wanted` pixels: its two neighbours among `length`, and their weights."""
    place = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    one = 1 << _WEIGHT_BITS
    weights = [np.rint(part * one).astype(np.int32) for part in (1 - share, share)]
    last = length - 1
    return first.clip(0, last), (first + 1).clip(0, last), weights[0], weights[1]


# ---- scaling with antialiasing, bit for bit as torch and Pillow do it with bytes -----------------
#
# torchvision, and by it the transformers library's processors, scale bytes by torch's `interpolate`
# with antialias=True; pictures of Pillow are scaled by Pillow. A kernel that is as wide as the
# scaling needs is made of whole numbers, of as many bits as fit 16 or, Pillow's, of 22; rows come
# first, then columns, each rounded to bytes.

_PILLOW_BITS = 22  # its PRECISION_BITS


def resize_smoothly(frames: np.ndarray, width: int, height: int, kind: Scaling) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] at `width` x `height`: uint8 [T, height, width, 3]."""
    scaled = [_filter(_filter(frame, width, 1, kind), height, 0, kind) for frame in frames]
    return np.stack(scaled)


def _filter(frame: np.ndarray, wanted: int, axis: int, kind: str) -> np.ndarray:
    """One frame uint8 [H, W, 3] with `wanted` pixels along `axis`."""
    length = frame.shape[axis]
    if length == wanted:
        return frame
    first, weights, bits = weigh_smoothly(length, wanted, kind)
    shape = [1, 1, 1]
    shape[axis] = wanted
    total = np.full((*frame.shape[:axis], wanted, *frame.shape[axis + 1 :]), 1 << (bits - 1), "i4")
    for number, of_tap in enumerate(weights.T):
        neighbours = frame.take((first + number).clip(0, length - 1), axis)
        total += neighbours * of_tap.reshape(shape)
    return (total >> bits).clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def weigh_smoothly(length: int, wanted: int, kind: str) -> tuple[np.ndarray, np.ndarray, int]:
    """For each of `wanted` pixels: its first neighbour, and int32 weights [wanted, taps] of it and
    those behind it, in units of 2 to the power of minus the number that is returned last."""
    scale = length / wanted
    shrink = max(scale, 1.0)
    curve, half = (_cubic, 2.0) if kind.endswith("bicubic") else (_triangle, 1.0)
    centres = scale * (np.arange(wanted) + 0.5)
    first = np.maximum((centres - half * shrink + 0.5).astype(np.int64), 0)
    behind = np.minimum((centres + half * shrink + 0.5).astype(np.int64), length)
    places = first[:, None] + np.arange((behind - first).max())
    weights = curve((places - centres[:, None] + 0.5) / shrink)
    weights = np.where(places < behind[:, None], weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = _PILLOW_BITS if kind.startswith("pillow") else 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    rounded = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
    return first, rounded.astype(np.int32), bits


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def load_opencv() -> Any:
    """Import OpenCV, whose loader changes LD_LIBRARY_PATH: child processes must not inherit that.

    Raises:
        ImportError: Its wheels' system libraries are missing.
    """
    environment = dict(os.environ)
    try:
        return importlib.import_module("cv2")
    finally:
        os.environ.clear()
        os.environ.update(environment)


@functools.cache
def find_opencv() -> Any:
    """OpenCV, or None where it cannot be loaded."""
    try:
        opencv = load_opencv()
    except ImportError:
        return None
    if not hasattr(opencv, "__file__"):  # the stand-in that mmaction2 gets
        return None
    opencv.setNumThreads(1)
    return opencv
