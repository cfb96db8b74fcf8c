"""How long an extraction will take: a few pending clips decoded and forwarded, nothing kept.

Enters: clips, a backbone. Leaves: seconds per clip, and on how many clips they were measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.frames.decode_job import DecodeJob
from dsts_pipeline.extract.frames.decode_pool import DecodePool
from dsts_pipeline.extract.frames.views import ViewPlan, Views
from dsts_pipeline.extract.models.backbones import Backbone

_NUM_BATCHES = 2


@dataclass(frozen=True)
class Forecast:
    """Seconds of work per clip, as measured on `num_clips` clips.

    `decode_seconds` is per clip of all decode processes together, their start left out;
    `is_parallel` whether decoding goes on beside the forward passes.
    """

    num_clips: int
    decode_seconds: float
    forward_seconds: float
    is_parallel: bool

    @property
    def seconds_per_clip(self) -> float:
        """The slower of both where they go on side by side, else their sum."""
        both = self.decode_seconds, self.forward_seconds
        return max(both) if self.is_parallel else sum(both)


def forecast_extraction(
    index: ClipIndex,
    backbone: Backbone,
    positions: Sequence[int],
    *,
    views: Views = Views(),
    decoder: Decoder = "auto",
    num_decode_workers: int = 1,
    batch_size: int = 32,
) -> Forecast:
    """Time two batches (fewer if fewer are pending) of the rows at `positions`, evenly spread.

    Choice: both halves are timed one after the other, because two batches are too few for a
    pipeline to settle. Where decoding and the backbone share processors the truth is slower.
    """
    num_clips = min(len(positions), _NUM_BATCHES * batch_size)
    chosen = [positions[i * len(positions) // num_clips] for i in range(num_clips)]
    plan = ViewPlan(index, backbone, views, decoder)
    jobs = [job for position in chosen for job in plan.jobs([position])]
    size = backbone.size_px
    frames = np.zeros((num_clips, backbone.num_frames, size, size, 3), np.uint8)
    with DecodePool(num_decode_workers) as pool:
        _warm_up(pool, jobs[:1] * num_decode_workers)
        started = time.monotonic()
        for row, decoded in enumerate(pool.run(jobs)):
            if decoded.frames is not None:
                frames[row] = decoded.frames[0]
        decode_seconds = time.monotonic() - started
    return Forecast(
        num_clips=num_clips,
        decode_seconds=decode_seconds / num_clips,
        forward_seconds=_time_forward(backbone, frames, batch_size) / num_clips,
        is_parallel=num_decode_workers > 0,
    )


def _warm_up(pool: DecodePool, jobs: Sequence[DecodeJob]) -> None:
    for _ in islice(pool.run(jobs), len(jobs)):
        pass


def _time_forward(backbone: Backbone, frames: np.ndarray, batch_size: int) -> float:
    def run(batch: np.ndarray) -> None:
        backbone(torch.from_numpy(batch).to(backbone.device)).cpu().numpy()

    with torch.inference_mode():
        run(frames[:batch_size])  # the first pass of a shape sets the backbone up
        started = time.monotonic()
        for start in range(0, len(frames), batch_size):
            run(frames[start : start + batch_size])
    return time.monotonic() - started
