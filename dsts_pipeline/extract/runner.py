"""Clips -> feature maps, shard by shard: decode processes ahead, one forward pass, one writer.

Enters: a clip index, a frozen backbone, a writer of shards. Leaves: shards in the store, and a
summary with every clip that could not be decoded.

The same store comes out whatever the number of decode processes, of extractions that share it, and
wherever one was stopped: a shard is done wholly or again from its start, its batches are cut at the
same places, and a clip that fails leaves its place in the batch empty instead of moving its
neighbours up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch

from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.augmentation import import_transforms
from dsts_pipeline.extract.decode_job import Decoded
from dsts_pipeline.extract.decode_pool import PREFETCH_BYTES, DecodePool
from dsts_pipeline.extract.failures import ClipFailure, check_failures
from dsts_pipeline.extract.forward import Computing, ForwardPass, MapMaker, Precision
from dsts_pipeline.extract.progress import ExtractionProgress, show_progress
from dsts_pipeline.extract.shards_ahead import ShardsAhead, ShardWriter
from dsts_pipeline.extract.stopping import exit_on_sigterm
from dsts_pipeline.extract.views import ViewPlan, Views

__all__ = ["ClipFailure", "ExtractionSummary", "check_failures", "extract_features"]


@dataclass(frozen=True)
class ExtractionSummary:
    """What one run did: clips looked at, those that failed, and where the time went.

    Attributes:
        num_clips: Maps that were to be made; views of a clip count one each.
        forward_seconds: The backbone was at work.
        decode_wait_seconds: The backbone waited for frames.
        num_shards: Shards that this run wrote.
    """

    num_clips: int
    failures: tuple[ClipFailure, ...]
    seconds: float
    forward_seconds: float
    decode_wait_seconds: float
    num_shards: int = 0


def extract_features(
    index: ClipIndex,
    backbone: MapMaker,
    writer: ShardWriter,
    *,
    views: Views = Views(),
    decoder: Decoder = "decord",
    decoder_fallback: Decoder | None = None,
    num_decode_workers: int = 1,
    clip_timeout_seconds: float = 60.0,
    prefetch_bytes: int = PREFETCH_BYTES,
    batch_size: int = 32,
    precision: Precision = "float32",
    compile: bool = False,
    max_failed_fraction: float = 0.01,
) -> ExtractionSummary:
    """Write every pending shard of the store; afterwards `writer.finish` may be called.

    Ctrl-C, SIGTERM or a kill lose the shards in work at most; the next run starts there. Shards
    that another extraction holds are left to it; if it dies, they are taken over.

    Args:
        index: The clips, in the order of the writer's plan.
        views: How many maps each clip has; the writer's plan has a row for each.
        decoder_fallback: Tried on clips on which `decoder` fails.
        num_decode_workers: Decode processes; 0 decodes here, without a watchdog.
        clip_timeout_seconds: A clip that takes its decoder longer is failed.
        prefetch_bytes: Decoded frames held ahead of the backbone, at most.
        batch_size: Maps per forward pass, halved where they do not fit the device's memory.
        precision, compile: See `Computing`.
        max_failed_fraction: Clips without a map that are tolerated, of all in the index.

    Raises:
        DataError: Too many clips cannot be decoded, or stored.
        StoreError: A shard cannot be written.
        UserError: Not even one clip fits the device's memory.
    """
    plan = ViewPlan(index, backbone, views, decoder, decoder_fallback)
    pending = writer.pending_shards()
    num_pending = sum(len(writer.shard_clips(shard)) for shard in pending)
    shards = ShardsAhead(writer, plan.jobs)
    started = time.monotonic()
    warm_up = import_transforms if views.augmentation.is_on else None
    if warm_up is not None:
        warm_up()  # here first, where an error can be told
    with (
        exit_on_sigterm(),
        DecodePool(
            num_decode_workers,
            clip_timeout_seconds=clip_timeout_seconds,
            prefetch_bytes=prefetch_bytes,
            warm_up=warm_up,
        ) as pool,
        show_progress(f"extract {backbone.name}", num_pending) as progress,
        torch.inference_mode(),
    ):
        forward = ForwardPass(backbone, Computing(batch_size, precision, compile))
        run = _Run(plan, backbone, forward, batch_size, max_failed_fraction, progress)
        results = pool.run(shards.jobs())
        num_shards = 0
        # The first answer of a shard, because asking for it is what claims the shard.
        while (first := next(results, None)) is not None:
            shard = shards.claimed[0]
            maps, failures = run.extract_shard(writer.shard_clips(shard), chain([first], results))
            writer.write_shard(shard, maps, failures)
            shards.claimed.popleft()
            num_shards += 1
            run.check(writer.failures())
        writer.flush()
    return ExtractionSummary(
        num_clips=run.num_clips,
        failures=tuple(run.failures),
        seconds=time.monotonic() - started,
        forward_seconds=forward.seconds,
        decode_wait_seconds=run.decode_wait_seconds,
        num_shards=num_shards,
    )


class _Run:
    """The state of one extraction: failures so far and where time went."""

    def __init__(
        self,
        plan: ViewPlan,
        backbone: MapMaker,
        forward: ForwardPass,
        batch_size: int,
        max_failed_fraction: float,
        progress: ExtractionProgress,
    ) -> None:
        self._plan, self._backbone, self._forward = plan, backbone, forward
        self._batch_size, self._max_failed_fraction = batch_size, max_failed_fraction
        self._progress = progress
        self.failures: list[ClipFailure] = []
        self.num_clips = 0
        self.decode_wait_seconds = 0.0

    def extract_shard(
        self, positions: range, answers: Iterator[Decoded]
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Maps float32 [n, C, T, H, W] of a shard's rows, and the reasons of those that failed."""
        maps = np.zeros((len(positions), *self._backbone.map_shape), np.float32)
        failures: dict[int, str] = {}
        views = self._views(positions, answers)
        for start in range(0, len(positions), self._batch_size):
            batch = positions[start : start + self._batch_size]
            frames = self._collect(batch, views, failures)
            self._forward.submit(frames, maps[start : start + len(batch)])
            self.num_clips += len(batch)
            self._progress.advance(
                len(batch),
                num_failed=len(self.failures),
                forward_seconds=self._forward.seconds,
                decode_wait_seconds=self.decode_wait_seconds,
            )
        self._forward.finish()
        return maps, failures

    def check(self, stored: Sequence[Mapping[str, Any]]) -> None:
        """Stop if too many clips failed; `stored` may know of some whose maps were refused."""
        failures = [ClipFailure(failure["id"], failure["reason"]) for failure in stored]
        for known in (failures, self.failures):
            check_failures(
                known, len(self._plan.index.clips), max_failed_fraction=self._max_failed_fraction
            )

    def _views(
        self, positions: range, answers: Iterator[Decoded]
    ) -> Iterator[tuple[np.ndarray | None, str]]:
        """Frames [T, H, W, 3] or None and the reason, for each row; an answer is for one clip."""
        for _, rows in groupby(self._plan.rows[position].clip for position in positions):
            decoded, num_views = next(answers), len(list(rows))
            for view in range(num_views):
                yield (
                    None if decoded.frames is None else decoded.frames[view],
                    decoded.reason,
                )

    def _collect(
        self,
        batch: range,
        views: Iterator[tuple[np.ndarray | None, str]],
        failures: dict[int, str],
    ) -> np.ndarray:
        size = self._backbone.size_px
        frames = np.zeros((len(batch), self._backbone.num_frames, size, size, 3), np.uint8)
        started = time.monotonic()
        for row, position in enumerate(batch):
            decoded, reason = next(views)
            if decoded is not None:
                frames[row] = decoded
                continue
            failures[position] = reason
            self.failures.append(ClipFailure(self._plan.clip_of(position).id, reason))
        self.decode_wait_seconds += time.monotonic() - started
        self.check([])
        return frames
