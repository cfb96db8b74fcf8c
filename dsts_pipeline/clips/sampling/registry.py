"""Rules by name, with their options checked once and their randomness made repeatable.

Enters: a name and options. Leaves: a function of the number of frames.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.clips.sampling.dense import sample_dense
from dsts_pipeline.clips.sampling.segments import (
    sample_centres,
    sample_mmaction_uniform,
    sample_swin_uniform,
    sample_tsn_segments,
)

SAMPLERS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {
        "segment_centres": sample_centres,
        "dense": sample_dense,
        "mmaction_uniform": sample_mmaction_uniform,
        "swin_uniform": sample_swin_uniform,
        "tsn_segments": sample_tsn_segments,
    }
)


class Sampler(Protocol):
    """Frame numbers int64 [clips, clip_len] of a clip of `num_frames`; no generator: test."""

    def __call__(self, num_frames: int, generator: Generator | None = None) -> np.ndarray: ...


def build_sampler(name: str, **options: Any) -> Sampler:
    """The rule `name` with its options, such as `clip_len`, `num_clips`, `frame_interval`.

    Raises:
        ValueError: The rule or an option is unknown (the message names the closest one), or an
            option has a value that the rule refuses.

    >>> build_sampler("dense", clip_len=4, frame_interval=8)(100).tolist()
    [[37, 45, 53, 61]]
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampling is {name!r}; {_closest(name, SAMPLERS)}")
    rule = SAMPLERS[name]
    known = inspect.signature(rule).parameters.keys() - {"num_frames", "generator"}
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; {_closest(option, known)}")

    def sample(num_frames: int, generator: Generator | None = None) -> np.ndarray:
        return rule(num_frames, generator=generator, **options)

    sample(1)  # refuses bad values at once
    return sample


def jitter_generator(seed: int, clip_id: str, view: int) -> Generator:
    """The generator of one training view of one clip: the same, whatever else is sampled."""
    return np.random.default_rng(derive_seed(seed, "frame jitter", clip_id, view))


def _closest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.4)
    names = ", ".join(sorted(known))
    return f"did you mean {close[0]}? Known: {names}" if close else f"known: {names}"
