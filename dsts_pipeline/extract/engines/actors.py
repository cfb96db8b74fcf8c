"""The two kinds of workers of a Ray cluster: decoders of clips, and backbones that write shards.

A `DecodeWorker` answers decode jobs, one at a time, under the watchdog of a pool of one process. A
`ShardWorker` claims shards in the store's own locks, so that several clusters, `torchrun`s and
single processes may share a store and no finished shard is done twice; the locks of a worker that
dies are free for the others. Both are plain classes: `cluster` makes Ray actors of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsts_pipeline.extract.failures import ClipFailure
from dsts_pipeline.extract.forward import Computing, ForwardPass, MapMaker
from dsts_pipeline.extract.frames.decode_job import Decoded, DecodeJob
from dsts_pipeline.extract.frames.decode_pool import DecodePool
from dsts_pipeline.extract.frames.views import ViewPlan
from dsts_pipeline.extract.progress import ExtractionProgress
from dsts_pipeline.extract.shard_run import ShardRun
from dsts_pipeline.extract.shards_ahead import ShardWriter
from dsts_pipeline.extract.tap_stores import TapStores


@dataclass(frozen=True)
class Tools:
    """What a `ShardWorker` works with; made on the worker's own machine."""

    plan: ViewPlan
    backbone: MapMaker
    writers: Sequence[ShardWriter]
    computing: Computing
    max_failed_fraction: float


@dataclass(frozen=True)
class Report:
    """What a worker did with a shard, or that it has claimed one.

    Attributes:
        claimed: The next shard that it holds now; None: no shard is free.
        is_complete: Whether the store has all its shards, those of others included.
    """

    claimed: int | None
    is_complete: bool
    num_rows: int = 0
    failures: tuple[ClipFailure, ...] = ()
    forward_seconds: float = 0.0
    decode_wait_seconds: float = 0.0


class DecodeWorker:
    """Decodes clips for others.

    Args:
        folder: Where relative paths start from.
    """

    def __init__(
        self, folder: str, clip_timeout_seconds: float, warm_up: Callable[[], None] | None
    ) -> None:
        os.chdir(folder)
        self._pool = DecodePool(1, clip_timeout_seconds=clip_timeout_seconds, warm_up=warm_up)

    def decode(self, job: DecodeJob) -> Decoded:
        """The frames of `job`, or the reason why there are none."""
        return next(self._pool.run([job]))


class ShardWorker:
    """Owns a backbone and writes shards of frames that others decoded.

    Args:
        folder: Where relative paths start from.
        make_tools: Called once, here.
        fetch: Brings one answer here, given what `extract` was given for it.
    """

    def __init__(
        self, folder: str, make_tools: Callable[[], Tools], fetch: Callable[[Any], Decoded]
    ) -> None:
        os.chdir(folder)
        self._fetch, tools = fetch, make_tools()
        self._stores = TapStores(tools.writers)
        self._forward = ForwardPass(tools.backbone, tools.computing)
        self._run = ShardRun(
            tools.plan,
            tools.backbone,
            self._forward,
            tools.computing.batch_size,
            tools.max_failed_fraction,
            _Silent(),
        )

    def claim(self) -> Report:
        """Claim a shard, if one is free."""
        return Report(*self._claim())

    def _claim(self) -> tuple[int | None, bool]:
        claimed = self._stores.claim(wait=False)
        # Only then is it asked, since this waits for the shard handed in last.
        return claimed, claimed is None and not self._stores.pending_shards()

    def extract(self, shard: int, answers: Sequence[Any]) -> Report:
        """Write a claimed shard and claim another one.

        Raises:
            DataError: Too many clips cannot be decoded.
            StoreError: The shard cannot be written.
        """
        run, stores = self._run, self._stores
        before = len(run.failures), self._forward.seconds, run.decode_wait_seconds
        positions = stores.shard_clips(shard)
        with torch.inference_mode():
            maps, failures = run.extract_shard(positions, self._fetch_all(answers))
        stores.write_shard(shard, maps, failures)
        run.check(stores.failures())
        return Report(
            *self._claim(),
            len(positions),
            tuple(run.failures[before[0] :]),
            self._forward.seconds - before[1],
            run.decode_wait_seconds - before[2],
        )

    def _fetch_all(self, answers: Sequence[Any]) -> Iterator[Decoded]:
        return (self._fetch(answer) for answer in answers)


class _Silent(ExtractionProgress):
    def advance(self, count: int, **state: float) -> None:
        """The cluster's driver tells of all workers."""
