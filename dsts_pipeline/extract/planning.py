"""What the settings ask extraction for: the backbone, its frames and views, how it is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from dsts_pipeline.base.settings import BackboneSettings, DatasetSettings
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.augmentation import Augmentation
from dsts_pipeline.extract.backbones import Backbone, build_backbone
from dsts_pipeline.extract.decode_pool import DecodeJob, DecodePool
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.views import ClipInput, ViewPlan, Views

_CHOICE = {"name", "weights", "weights_sha256", "key_map", "taps", "num_frames", "size_px"}


def choose_backbone(chosen: BackboneSettings) -> Backbone:
    """The backbone, frozen, on the CPU.

    Raises:
        CheckpointError: There are no sound weights.
    """
    return build_backbone(**chosen.model_dump(include=_CHOICE))


def choose_fallback(chosen: BackboneSettings) -> Decoder | None:
    """The decoder of files that the first one can't read; None for none."""
    return None if chosen.decoder_fallback == "none" else chosen.decoder_fallback


def choose_views(chosen: BackboneSettings, dataset: DatasetSettings) -> Views:
    """How many maps a clip has, and how those of training clips are changed.

    Raises:
        SettingsError: Views are to be mirrored and a mirrored clip has no class.
    """
    return Views(
        **chosen.views.model_dump(exclude={"augmentation"}),
        augmentation=Augmentation(**chosen.views.augmentation.model_dump()),
        flips=FlipRule(dataset.flip, dataset.flip_pairs),
    )


def choose_computing(chosen: BackboneSettings) -> Computing:
    """How the backbone is run."""
    return Computing(chosen.batch_size, chosen.precision, chosen.compile, chosen.channels_last)


def plan_views(
    index: ClipIndex, backbone: ClipInput, chosen: BackboneSettings, dataset: DatasetSettings
) -> ViewPlan:
    """The rows of the store of `index`, and what decode processes are told about them."""
    views = choose_views(chosen, dataset)
    return ViewPlan(index, backbone, views, chosen.decoder, choose_fallback(chosen))


def extraction_options(chosen: BackboneSettings, dataset: DatasetSettings) -> dict[str, Any]:
    """Keywords of `extract_features`."""
    return asdict(choose_computing(chosen)) | {
        "views": choose_views(chosen, dataset),
        "decoder": chosen.decoder,
        "decoder_fallback": choose_fallback(chosen),
        "num_decode_workers": chosen.num_decode_workers,
        "clip_timeout_seconds": chosen.clip_timeout_seconds,
        "prefetch_bytes": chosen.prefetch_bytes,
        "max_failed_fraction": chosen.max_failed_fraction,
    }


# ---- How long an extraction will take: a few pending clips decoded and forwarded, nothing kept.
#
# Enters: clips, a backbone. Leaves: seconds per clip, and on how many clips they were measured.

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
