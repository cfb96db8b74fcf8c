"""Which frames the views of a clip show: the backbone's own rule, or centres of equal segments.

Enters: the number of frames of a clip. Leaves: frame numbers int64 [views, T], from 0.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from dsts_pipeline.clips.sampling import SAMPLERS, uniform_frames
from dsts_pipeline.extract.frames.pipelines import Pipeline

_TRAINING_OPTIONS = {"clip_len", "frame_interval", "out_of_bound", "keep_tail_frames", "target_fps"}


def sample_views(
    num_frames: int, length: int, count: int, pipeline: Pipeline | None, fps: float | None
) -> np.ndarray:
    """`count` samples of `length` frames, as at test.

    Without a pipeline, frame i of sample v is floor((i + (v + 1/2) / count) n / length): together
    the samples are the centres of count x length segments, and one alone is the centres.

    Raises:
        SettingsError: The pipeline's rule cannot take so many samples.
    """
    if pipeline is not None:
        return pipeline.with_views(count).sample(num_frames, fps)
    return uniform_frames(num_frames, length * count).reshape(length, count).T


def jitter_frames(
    num_frames: int,
    length: int,
    pipeline: Pipeline | None,
    fps: float | None,
    generator: Generator,
) -> np.ndarray:
    """One sample [T] as in training: by the pipeline's rule, or any frame of each segment."""
    if pipeline is None:
        numbers = ((np.arange(length) + generator.random(length)) * num_frames / length).astype(
            np.int64
        )
        return np.minimum(numbers, num_frames - 1)  # a share next to 1 may be rounded up
    chosen = pipeline.with_views(1)
    if chosen.sampler in SAMPLERS:
        options = dict(chosen.options)
        timed = {"fps": fps} if options.get("target_fps") else {}
        rule = SAMPLERS[chosen.sampler]
    else:  # dense positions are clips of neighbouring frames; in training, one of them
        options = {k: v for k, v in chosen.options.items() if k in _TRAINING_OPTIONS}
        timed, rule = {}, SAMPLERS["dense"]
    return rule(num_frames, **options, **timed, generator=generator).reshape(-1)[:length]
