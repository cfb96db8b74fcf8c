"""Clips of neighbouring frames, as mmaction2's `SampleFrames` takes them.

Enters: a number of frames. Leaves: frame numbers [clips, clip_len]. With `num_clips` > 1 and
`clip_len` = 1 it is segment sampling, which mmaction2 uses for TSN and TSM.

Source: mmaction2 1.2.0, mmaction/datasets/transforms/loading.py, class SampleFrames; equal to it
number by number, rounding and all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from dsts_pipeline.clips.sampling.checks import check_counts


@dataclass(frozen=True)
class _Rule:
    clip_len: int
    num_clips: int
    frame_interval: int
    twice_sample: bool
    keep_tail_frames: bool
    target_fps: float | None

    def span(self, fps: float | None, training: bool) -> float:
        """Frames that a clip reaches over, in frames of the video."""
        if self.target_fps is not None:
            ratio = fps / self.target_fps if fps else 1.0
            return max(1.0, self.clip_len * self.frame_interval * ratio)
        if training:
            return self.clip_len * self.frame_interval
        return (self.clip_len - 1) * self.frame_interval + 1


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

    >>> sample_dense(100, clip_len=4, frame_interval=8).tolist()
    [[37, 45, 53, 61]]
    >>> sample_dense(10, clip_len=4, frame_interval=4, out_of_bound="repeat_last").tolist()
    [[0, 4, 8, 8]]
    """
    check_counts(num_frames, clip_len=clip_len, num_clips=num_clips, frame_interval=frame_interval)
    rule = _Rule(clip_len, num_clips, frame_interval, twice_sample, keep_tail_frames, target_fps)
    _check_options(rule, out_of_bound, temporal_jitter, generator is not None)
    span = rule.span(fps, generator is not None)
    if generator is None:
        starts = _test_starts(rule, num_frames, span)
    else:
        starts = _training_starts(rule, num_frames, span, generator)
    if target_fps is None:
        steps = np.arange(clip_len) * frame_interval
    else:
        steps = np.linspace(0, span - 1, clip_len).astype(np.int32)
    frames = starts[:, None] + steps
    if temporal_jitter and generator is not None:
        frames = frames + generator.integers(frame_interval, size=frames.size).reshape(frames.shape)
    return _bring_inside(frames, num_frames, out_of_bound).astype(np.int64)


def _test_starts(rule: _Rule, num_frames: int, span: float) -> np.ndarray:
    if rule.clip_len == 1:
        length = num_frames / float(rule.num_clips)
        starts = np.arange(rule.num_clips) * length
        middles = starts + length / 2.0
        return np.concatenate([middles, starts]) if rule.twice_sample else middles
    last = max(num_frames - span, 0)
    count = rule.num_clips * (2 if rule.twice_sample else 1)
    if count == 1:
        return np.array([last // 2])
    distance = last / float(rule.num_clips - 1)
    if rule.target_fps is not None:
        return np.arange(count) * np.floor(distance)
    return np.round(np.arange(count) * distance)


def _training_starts(rule: _Rule, num_frames: int, span: float, generator: Generator) -> np.ndarray:
    count = rule.num_clips
    possible = num_frames - span + 1
    if rule.keep_tail_frames:
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


def _check_options(rule: _Rule, out_of_bound: str, temporal_jitter: bool, training: bool) -> None:
    if out_of_bound not in ("loop", "repeat_last"):
        raise ValueError(f"out_of_bound is {out_of_bound!r}, expected 'loop' or 'repeat_last'")
    if rule.twice_sample and rule.clip_len > 1 and rule.num_clips == 1 and not training:
        raise ValueError("twice_sample of one clip has no distance to go by; use num_clips=2")
    if temporal_jitter and rule.target_fps is not None:
        raise ValueError("temporal_jitter and target_fps exclude each other; drop one of them")
    if rule.target_fps is not None and rule.target_fps <= 0:
        raise ValueError(f"target_fps is {rule.target_fps}, expected more than 0")
