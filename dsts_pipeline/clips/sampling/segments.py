"""One frame out of each of a clip's equal segments, in the ways of three published recipes.

Enters: a number of frames. Leaves: frame numbers [clips, clip_len], ascending in each clip.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from dsts_pipeline.clips.sampling.centres import uniform_frames
from dsts_pipeline.clips.sampling.checks import check_counts


def sample_centres(
    num_frames: int, *, clip_len: int, num_clips: int = 1, generator: Generator | None = None
) -> np.ndarray:
    """Centres of equal segments, see `uniform_frames`; in training any frame of the segment.

    Training draws from the frames floor(i n / k) to floor((i + 1) n / k) - 1 of segment i, and
    takes the first where there is none. Choice: the embedded data set's own rule.

    Args:
        num_frames: Frames of the clip, at least 1.
        clip_len: Frames wanted.
        num_clips: 1.
        generator: Source of the jitter of training; None: test.

    Returns:
        int64 [1, clip_len].
    """
    check_counts(num_frames, clip_len=clip_len)
    _expect_one_clip(num_clips, "segment_centres")
    if generator is None:
        return uniform_frames(num_frames, clip_len)[None]
    bounds = np.arange(clip_len + 1) * num_frames // clip_len
    lengths = np.maximum(np.diff(bounds), 1)
    return (bounds[:-1] + generator.integers(lengths))[None].astype(np.int64)


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
    check_counts(num_frames, clip_len=clip_len, num_clips=num_clips)
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
    check_counts(num_frames, clip_len=clip_len)
    _expect_one_clip(num_clips, "swin_uniform")
    bounds, _ = _rounded_bounds(num_frames, clip_len)
    if generator is not None:
        return generator.integers(bounds[:-1], bounds[1:], endpoint=True)[None]
    return ((bounds[:-1] + bounds[1:]) // 2)[None]


def sample_tsn_segments(
    num_frames: int,
    *,
    clip_len: int = 1,
    num_clips: int = 8,
    twice_sample: bool = False,
    generator: Generator | None = None,
) -> np.ndarray:
    """TSN's segments as TSM's code takes them: `num_clips` segments of `clip_len` frames in a row.

    With n' = n - clip_len + 1 and K segments, test: floor(n' / (2 K) + i n' / K). Training:
    i floor(n' / K) plus a random number below floor(n' / K); where that is 0, K sorted random
    starts if n > K, else the first frame K times.

    Deviation: where the clip is shorter than `clip_len`, starts stay at the first frame instead of
    going below it, and frames behind the last one are the last one.

    Args:
        num_frames: Frames of the video, at least 1.
        clip_len: Frames of each segment; 1 for RGB.
        num_clips: Segments.
        twice_sample: At test, a second set of segments from floor(i n' / K).
        generator: Source of the jitter of training; None: test.

    Returns:
        int64 [num_clips, clip_len], or [2 * num_clips, clip_len] with `twice_sample` at test.

    Source: https://arxiv.org/abs/1608.00859, section 3.1; temporal-shift-module's ops/dataset.py,
    `_sample_indices` and `_get_test_indices`, which count frames from 1.

    >>> sample_tsn_segments(100, num_clips=4).ravel().tolist()
    [12, 37, 62, 87]
    """
    check_counts(num_frames, clip_len=clip_len, num_clips=num_clips)
    possible = num_frames - clip_len + 1
    if generator is None:
        length = max(possible, 0) / float(num_clips)
        starts = (length / 2.0 + length * np.arange(num_clips)).astype(np.int64)
        if twice_sample:
            starts = np.concatenate([starts, (length * np.arange(num_clips)).astype(np.int64)])
    elif possible // num_clips > 0:
        length = possible // num_clips
        starts = np.arange(num_clips) * length + generator.integers(length, size=num_clips)
    elif num_frames > num_clips and possible > 0:
        starts = np.sort(generator.integers(possible, size=num_clips))
    else:
        starts = np.zeros(num_clips, dtype=np.int64)
    return np.minimum(starts[:, None] + np.arange(clip_len), num_frames - 1).astype(np.int64)


def _rounded_bounds(num_frames: int, clip_len: int) -> tuple[np.ndarray, float]:
    """Bounds of the segments, int64 [clip_len + 1], and their length before rounding."""
    length = float(num_frames - 1) / clip_len
    return np.round(length * np.arange(clip_len + 1)).astype(np.int64), length


def _expect_one_clip(num_clips: int, name: str) -> None:
    if num_clips != 1:
        raise ValueError(f"num_clips is {num_clips}, expected 1: {name} takes one clip")
