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
from collections.abc import Sequence
from itertools import chain

import torch

from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.failures import ClipFailure, check_failures
from dsts_pipeline.extract.forward import Computing, ForwardPass, MapMaker, Precision
from dsts_pipeline.extract.frames.augmentation import import_transforms
from dsts_pipeline.extract.frames.decode_job import DecodeFunction, decode_clip
from dsts_pipeline.extract.frames.decode_pool import PREFETCH_BYTES, DecodePool
from dsts_pipeline.extract.frames.views import ViewPlan, Views
from dsts_pipeline.extract.progress import ExtractionSummary, show_progress
from dsts_pipeline.extract.shard_run import KnownMaps, ShardRun
from dsts_pipeline.extract.shards_ahead import ShardsAhead, ShardWriter
from dsts_pipeline.extract.stopping import exit_on_sigterm
from dsts_pipeline.extract.tap_stores import TapStores

__all__ = ["ClipFailure", "ExtractionSummary", "check_failures", "extract_features"]


def extract_features(
    index: ClipIndex,
    backbone: MapMaker,
    writer: ShardWriter | Sequence[ShardWriter],
    *,
    views: Views = Views(),
    decoder: Decoder = "auto",
    decoder_fallback: Decoder | None = None,
    num_decode_workers: int = 1,
    clip_timeout_seconds: float = 60.0,
    prefetch_bytes: int = PREFETCH_BYTES,
    batch_size: int = 32,
    precision: Precision = "float32",
    compile: bool = False,
    channels_last: bool = False,
    max_failed_fraction: float = 0.01,
    decode: DecodeFunction = decode_clip,
    earlier: KnownMaps | None = None,
) -> ExtractionSummary:
    """Write every pending shard of the store; afterwards `writer.finish` may be called.

    Ctrl-C, SIGTERM or a kill lose the shards in work at most; the next run starts there. Shards
    that another extraction holds are left to it; if it dies, they are taken over.

    Args:
        index: The clips, in the order of the writer's plan.
        writer: Of the store; of a backbone with several taps, one per tap.
        views: How many maps each clip has; the writer's plan has a row for each.
        decoder_fallback: Tried on clips on which `decoder` fails.
        num_decode_workers: Decode processes; 0 decodes here, without a watchdog.
        clip_timeout_seconds: A clip that takes its decoder longer is failed.
        prefetch_bytes: Decoded frames held ahead of the backbone, at most.
        batch_size: Maps per forward pass, halved where they do not fit the device's memory.
        precision, compile, channels_last: See `Computing`.
        max_failed_fraction: Clips without a map that are tolerated, of all in the index.
        decode: What the decode processes do with a job; must be importable by name.
        earlier: Maps of a former store that are copied instead of made; of one tap alone.

    Raises:
        DataError: Too many clips cannot be decoded, or stored.
        StoreError: A shard cannot be written.
        UserError: Not even one clip fits the device's memory.
    """
    plan = ViewPlan(index, backbone, views, decoder, decoder_fallback)
    stores = TapStores(writer if isinstance(writer, Sequence) else [writer])
    num_pending = sum(len(stores.shard_clips(shard)) for shard in stores.pending_shards())
    taken = {} if earlier is None else earlier.rows
    if earlier is not None:
        _copy_whole_shards(stores, earlier)
    shards = ShardsAhead(
        stores, lambda positions: plan.jobs([p for p in positions if p not in taken])
    )
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
            decode=decode,
            warm_up=warm_up,
        ) as pool,
        show_progress(f"extract {backbone.name}", num_pending) as progress,
        torch.inference_mode(),
    ):
        computing = Computing(batch_size, precision, compile, channels_last)
        forward = ForwardPass(backbone, computing)
        run = ShardRun(plan, backbone, forward, batch_size, max_failed_fraction, progress, earlier)
        results = pool.run(shards.jobs())
        num_shards = 0
        # The first answer of a shard, because asking for it is what claims the shard.
        while (first := next(results, None)) is not None:
            shard = shards.claimed[0]
            maps, failures = run.extract_shard(stores.shard_clips(shard), chain([first], results))
            stores.write_shard(shard, maps, failures)
            shards.claimed.popleft()
            num_shards += 1
            run.check(stores.failures())
        stores.flush()
    return ExtractionSummary(
        num_clips=run.num_clips,
        failures=tuple(run.failures),
        seconds=time.monotonic() - started,
        forward_seconds=forward.seconds,
        decode_wait_seconds=run.decode_wait_seconds,
        num_shards=num_shards,
    )


def _copy_whole_shards(stores: TapStores, known: KnownMaps) -> None:
    """Write the pending shards of which every map is known already."""
    for shard in stores.pending_shards():
        positions = stores.shard_clips(shard)
        if all(position in known.rows for position in positions) and stores.claim_shard(shard):
            stores.write_shard(shard, [known.read(positions)])
