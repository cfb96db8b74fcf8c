"""Which frames of a clip a recognizer sees: the rules of published recipes, by name.

Enters: the number of frames of a clip. Leaves: frame numbers, int64 [clips, clip_len]. Each rule
takes a generator in training, and none at test. Randomness depends on the clip and the view alone,
see `jitter_generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.random import Generator

from dsts_pipeline.base.provenance import derive_seed

# ---- centres of equal segments -------------------------------------------------------------------


def uniform_frames(num_frames: int, num_samples: int) -> np.ndarray:
    """Centres of equal segments: frame i is floor((i + 1/2) * num_frames / num_samples).

    With fewer frames than samples, frames repeat; none is ever left out of reach.

    Args:
        num_frames: Frames of the clip, at least 1.
        num_samples: Frames wanted, at least 1.

    Returns:
        int64 [num_samples], ascending, each in [0, num_frames).

    Raises:
        ValueError: A count is below 1.

    Source: segment sampling at test time, https://arxiv.org/abs/1608.00859.

    >>> uniform_frames(24, 4).tolist()
    [3, 9, 15, 21]
    """
    if num_frames < 1 or num_samples < 1:
        raise ValueError(
            f"{num_samples} samples of {num_frames} frames were asked for, expected at least 1 of 1"
        )
    # In whole numbers: floating point would put some centres on the wrong side of a frame.
    return (2 * np.arange(num_samples, dtype=np.int64) + 1) * num_frames // (2 * num_samples)


def sample_centres(
    num_frames: int, *, clip_len: int, num_clips: int = 1, generator: Generator | None = None
) -> np.ndarray:
    """Centres of equal segments, see `uniform_frames`; in training any frame of the segment.

    Training draws from the frames floor(i n / k) to floor((i + 1) n / k) - 1 of segment i, and
    takes the first where there is none. Choice: the embedded data set's own rule.

    Args:
        num_frames: Frames of the clip, at least 1.
        clip_len: Frames wanted.
        num_clips: At test, samples shifted against each other: together they are the centres of
            clip_len * num_clips segments. 1 in training.
        generator: Source of the jitter of training; None: test.

    Returns:
        int64 [num_clips, clip_len]; [1, clip_len] in training.

    >>> sample_centres(16, clip_len=4, num_clips=2).tolist()
    [[1, 5, 9, 13], [3, 7, 11, 15]]
    """
    _check_counts(num_frames, clip_len=clip_len, num_clips=num_clips)
    if generator is None:
        return uniform_frames(num_frames, clip_len * num_clips).reshape(clip_len, num_clips).T
    bounds = np.arange(clip_len + 1) * num_frames // clip_len
    lengths = np.maximum(np.diff(bounds), 1)
    return (bounds[:-1] + generator.integers(lengths))[None].astype(np.int64)


# ---- one frame out of each segment, as two code bases have it ------------------------------------


def sample_mmaction_uniform(
    num_frames: int, *, clip_len: int, num_clips: int = 1, generator: Generator | None = None
) -> np.ndarray:
    """One frame of each segment; at test, clip k of K lies k / (K + 1) into the segments.

    With s = (n - 1) / clip_len, segment i goes from round(s i) to round(s (i + 1)), both ends
    included, halves rounded to even. Test: round(s i) + floor(s k / (K + 1)), k from 1.

    Args:
        num_frames: Frames of the clip, at least 1.
        clip_len, num_clips: Frames per clip, and clips at test.
        generator: Source of the jitter of training, which takes one clip; None: test.

    Returns:
        int64 [num_clips, clip_len]; [1, clip_len] in training.

    Source: mmaction2 1.2.0, mmaction/datasets/transforms/loading.py, class UniformSample.

    >>> sample_mmaction_uniform(33, clip_len=4, num_clips=2).tolist()
    [[2, 10, 18, 26], [5, 13, 21, 29]]
    """
    _check_counts(num_frames, clip_len=clip_len, num_clips=num_clips)
    bounds, length = _rounded_bounds(num_frames, clip_len)
    if generator is not None:
        return generator.integers(bounds[:-1], bounds[1:], endpoint=True)[None]
    part = length / (num_clips + 1)
    return np.stack([bounds[:-1] + int(part * (k + 1)) for k in range(num_clips)])


def sample_swin_uniform(
    num_frames: int, *, clip_len: int, num_clips: int = 1, generator: Generator | None = None
) -> np.ndarray:
    """The middle of each segment; in training any of its frames: `frame_uniform` of Video Swin.

    Segments as in `sample_mmaction_uniform`. Test: floor((start + end) / 2).

    Args:
        num_frames: Frames of the clip, at least 1.
        clip_len: Frames wanted.
        num_clips: 1: the source takes one clip, whatever is asked for.
        generator: Source of the jitter of training; None: test.

    Returns:
        int64 [1, clip_len].

    Source: Video Swin Transformer's mmaction/datasets/pipelines/loading.py,
    `SampleFrames.get_seq_frames`, after SlowFast's datasets/ssv2.py.

    >>> sample_swin_uniform(33, clip_len=4).tolist()
    [[4, 12, 20, 28]]
    """
    _check_counts(num_frames, clip_len=clip_len)
    _expect_one_clip(num_clips, "swin_uniform")
    if generator is not None:
        return sample_mmaction_uniform(num_frames, clip_len=clip_len, generator=generator)
    bounds, _ = _rounded_bounds(num_frames, clip_len)
    return ((bounds[:-1] + bounds[1:]) // 2)[None]


def _rounded_bounds(num_frames: int, clip_len: int) -> tuple[np.ndarray, float]:
    """Bounds of the segments, int64 [clip_len + 1], and their length before rounding."""
    length = float(num_frames - 1) / clip_len
    return np.round(length * np.arange(clip_len + 1)).astype(np.int64), length


# ---- clips of neighbouring frames: mmaction2's `SampleFrames` ------------------------------------
#
# With `num_clips` > 1 and `clip_len` = 1 it is segment sampling, which mmaction2 uses for TSN and
# TSM.


def sample_dense(
    num_frames: int,
    *,
    clip_len: int,
    num_clips: int = 1,
    frame_interval: int = 1,
    out_of_bound: Literal["loop", "repeat_last"] = "loop",
    twice_sample: bool = False,
    temporal_jitter: bool = False,
    keep_tail_frames: bool = False,
    target_fps: float | None = None,
    fps: float | None = None,
    generator: Generator | None = None,
) -> np.ndarray:
    """Clips of `clip_len` frames, each `frame_interval` after the one before.

    Test (no generator): clips at equal distances from the first frame to the last possible start;
    one clip lies in the middle. Frames alone (`clip_len` 1) lie in the middle of equal segments.
    Training: each clip starts at random within its share of the video.

    Args:
        num_frames: Frames of the video, at least 1.
        clip_len, num_clips: Frames per clip and clips, at least 1.
        frame_interval: Frames from one to the next.
        out_of_bound: What follows the last frame: the first again, or the last that was reached.
        twice_sample: At test, twice as many clips: for single frames those in the middle of their
            segments, then those at their starts (TSM).
        temporal_jitter: In training, each frame up to frame_interval - 1 later, at random.
        keep_tail_frames: In training, shares of a fractional length, so that the end is reached.
        target_fps, fps: Take frames as if the video of `fps` frames a second had `target_fps`.
        generator: Source of the jitter of training; None: test.

    Returns:
        int64 [num_clips, clip_len], or [2 * num_clips, clip_len] with `twice_sample` at test.

    Raises:
        ValueError: A count is below 1, or options exclude each other.

    Source: mmaction2 1.2.0, mmaction/datasets/transforms/loading.py, class SampleFrames; equal to
    it number by number, rounding and all.

    >>> sample_dense(100, clip_len=4, frame_interval=8).tolist()
    [[37, 45, 53, 61]]
    >>> sample_dense(10, clip_len=4, frame_interval=4, out_of_bound="repeat_last").tolist()
    [[0, 4, 8, 8]]
    """
    _check_counts(num_frames, clip_len=clip_len, num_clips=num_clips, frame_interval=frame_interval)
    if out_of_bound not in ("loop", "repeat_last"):
        raise ValueError(f"out_of_bound is {out_of_bound!r}, expected 'loop' or 'repeat_last'")
    if twice_sample and clip_len > 1 and num_clips == 1 and generator is None:
        raise ValueError("twice_sample of one clip has no distance to go by; use num_clips=2")
    if temporal_jitter and target_fps is not None:
        raise ValueError("temporal_jitter and target_fps exclude each other; drop one of them")
    if target_fps is not None and target_fps <= 0:
        raise ValueError(f"target_fps is {target_fps}, expected more than 0")
    span: float  # frames of the video that a clip reaches over
    if target_fps is not None:
        span = max(1.0, clip_len * frame_interval * (fps / target_fps if fps else 1.0))
    elif generator is not None:
        span = clip_len * frame_interval
    else:
        span = (clip_len - 1) * frame_interval + 1
    if generator is not None:
        starts = _training_starts(num_frames, span, num_clips, keep_tail_frames, generator)
    elif clip_len == 1:
        length = num_frames / float(num_clips)
        starts = np.arange(num_clips) * length
        middles = starts + length / 2.0
        starts = np.concatenate([middles, starts]) if twice_sample else middles
    else:
        last = max(num_frames - span, 0)
        count = num_clips * (2 if twice_sample else 1)
        if count == 1:
            starts = np.array([last // 2])
        elif target_fps is not None:
            starts = np.arange(count) * np.floor(last / float(num_clips - 1))
        else:
            starts = np.round(np.arange(count) * (last / float(num_clips - 1)))
    if target_fps is None:
        steps = np.arange(clip_len) * frame_interval
    else:
        steps = np.linspace(0, span - 1, clip_len).astype(np.int32)
    frames = starts[:, None] + steps
    if temporal_jitter and generator is not None:
        frames = frames + generator.integers(frame_interval, size=frames.size).reshape(frames.shape)
    return _bring_inside(frames, num_frames, out_of_bound).astype(np.int64)


def _training_starts(
    num_frames: int, span: float, count: int, keep_tail_frames: bool, generator: Generator
) -> np.ndarray:
    possible = num_frames - span + 1
    if keep_tail_frames:
        share = possible / float(count)
        if num_frames <= span - 1:
            return np.zeros(count, dtype=np.int64)
        return (np.arange(count) * share + generator.uniform(0, share, count)).astype(np.int32)
    share = possible // count
    if share > 0:
        return np.arange(count) * share + generator.integers(int(share), size=count)
    if num_frames > max(count, span):
        return np.sort(generator.integers(int(possible), size=count))
    if share == 0:
        return np.around(np.arange(count) * (possible / count))
    return np.zeros(count, dtype=np.int64)


def _bring_inside(frames: np.ndarray, num_frames: int, out_of_bound: str) -> np.ndarray:
    if out_of_bound == "loop":
        return np.mod(frames, num_frames)
    is_inside = frames < num_frames
    last_reached = np.max(is_inside * frames, axis=1, keepdims=True)
    return np.where(is_inside, frames, last_reached)


# ---- all rules -----------------------------------------------------------------------------------

SAMPLERS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {
        "segment_centres": sample_centres,
        "dense": sample_dense,
        "mmaction_uniform": sample_mmaction_uniform,
        "swin_uniform": sample_swin_uniform,
    }
)


def jitter_generator(seed: int, clip_id: str, view: int) -> Generator:
    """The generator of one training view of one clip: the same, whatever else is sampled."""
    return np.random.default_rng(derive_seed(seed, "frame jitter", clip_id, view))


def _check_counts(num_frames: int, **counts: int) -> None:
    """Raise a ValueError unless all are at least 1."""
    for name, count in {"num_frames": num_frames, **counts}.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")


def _expect_one_clip(num_clips: int, name: str) -> None:
    if num_clips != 1:
        raise ValueError(f"num_clips is {num_clips}, expected 1: {name} takes one clip")
