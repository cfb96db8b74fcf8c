"""An extraction spread over a Ray cluster: decoding on its CPUs, backbones on its GPUs or CPUs.

Enters: how a worker makes its tools, and how many are wanted. Leaves: a store all of whose shards
are written. The driver tells workers nothing but which frames belong to the shard that they have
claimed themselves; what it knows can be lost with it.

Elastic: machines that join the cluster get workers within seconds. A worker that is lost, alone or
with its machine, drops its claims with its process, and another one takes its place where there is
room; a lost decoder starts anew on what is left, and clips that it had in work are decoded again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dsts_pipeline.base.children import exit_on_sigterm
from dsts_pipeline.base.errors import UserError, import_extra
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract.decode_pool import Decoded, DecodePool, decode_counted
from dsts_pipeline.extract.forward import ForwardPass, MapMaker, choose_computing
from dsts_pipeline.extract.progress import (
    ClipFailure,
    ExtractionProgress,
    ExtractionSummary,
    Means,
    show_progress,
)
from dsts_pipeline.extract.runner import ShardRun, ShardWriter, TapStores, shared_bytes
from dsts_pipeline.extract.views import FrameRequest, ViewPlan

_SHARDS_PER_WORKER = 2  # one in work, one being decoded
_POLL_SECONDS = 1.0
_MAX_LOSSES = 20
_MOST_DECODERS = 16  # per backbone, where their number is left open


def extract_on_cluster(
    make_tools: Callable[[], Tools],
    plan: ViewPlan,
    positions_of: Callable[[int], range],
    num_pending: int,
    settings: BackboneSettings,
    num_workers: int | None = None,
) -> ExtractionSummary:
    """Write all pending shards of the store by the workers of a Ray cluster.

    The cluster is the one that the variable RAY_ADDRESS names, else one on this machine that ends
    with the extraction.

    Args:
        make_tools: Called in every worker, by name: the code must be there, too.
        positions_of: Rows of a shard.
        num_pending: Rows that are not written yet, for the display.
        settings: How many decode processes each backbone has (at least one; "auto": its share of
            the cluster's CPUs), how long a clip may take.
        num_workers: Backbones at work; None: one per GPU of the cluster, or as many as its CPUs
            hold where it has none.

    Raises:
        DataError, StoreError: Of a worker.
        UserError: Ray is not installed, or worker after worker is lost.
    """
    ray = import_extra("ray", "--engine ray")
    started = time.monotonic()
    totals = _Totals()
    cluster = _Cluster(ray, make_tools, plan, positions_of, settings, num_workers)
    cluster.connect()
    try:
        with exit_on_sigterm(), show_progress("extract on Ray", num_pending) as progress:
            for report in cluster.run(totals):
                totals.add(report)
                num_at_work = max(1, len(cluster.workers))
                progress.advance(
                    report.num_rows,
                    num_failed=len(totals.failures),
                    forward_seconds=totals.forward_seconds / num_at_work,
                    decode_wait_seconds=totals.decode_wait_seconds / num_at_work,
                    means=cluster.means,
                )
    finally:
        ray.shutdown()
    return ExtractionSummary(
        num_clips=totals.num_rows,
        failures=tuple(totals.failures),
        seconds=time.monotonic() - started,
        forward_seconds=totals.forward_seconds,
        decode_wait_seconds=totals.decode_wait_seconds,
        num_shards=totals.num_shards,
        num_decode_workers=cluster.num_decoders,
        num_shown=totals.num_rows * plan.input.num_frames,
        num_decoded=totals.num_decoded,
    )


# ---- the two kinds of workers: decoders of clips, and backbones that write shards ---------------
#
# Both are plain classes, of which `_Cluster` makes Ray actors. Shards are claimed in the store's
# own locks, so that several clusters, `torchrun`s and single processes may share a store and no
# finished shard is done twice; the locks of a worker that dies are free for the others.


@dataclass(frozen=True)
class Tools:
    """What a `ShardWorker` works with; made on the worker's own machine."""

    plan: ViewPlan
    backbone: MapMaker
    writers: Sequence[ShardWriter]
    settings: BackboneSettings


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
    num_decoded: int = 0


class DecodeWorker:
    """Decodes clips for others.

    Args:
        folder: Where relative paths start from.
    """

    def __init__(
        self, folder: str, clip_timeout_seconds: float, warm_up: Callable[[], None] | None
    ) -> None:
        os.chdir(folder)
        self._pool = DecodePool(
            1, clip_timeout_seconds=clip_timeout_seconds, decode=decode_counted, warm_up=warm_up
        )

    def decode(self, job: FrameRequest) -> list[Decoded]:
        """The frames of each clip of `job`, or the reason why there are none."""
        return list(self._pool.run([job]))


class ShardWorker:
    """Owns a backbone and writes shards of frames that others decoded.

    Args:
        folder: Where relative paths start from.
        make_tools: Called once, here.
        fetch: Brings the answers to one job here, given what `extract` was given for it.
    """

    def __init__(
        self, folder: str, make_tools: Callable[[], Tools], fetch: Callable[[Any], list[Decoded]]
    ) -> None:
        os.chdir(folder)
        self._fetch = fetch
        tools = make_tools()
        self._stores = TapStores(tools.writers)
        self._forward = ForwardPass(tools.backbone, choose_computing(tools.settings))
        self._run = ShardRun(tools.plan, tools.backbone, self._forward, tools.settings, _Silent())

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
        run = self._run
        stores = self._stores
        num_failures = len(run.failures)
        forward_seconds = self._forward.seconds
        decode_wait_seconds = run.decode_wait_seconds
        num_decoded = run.num_decoded
        positions = stores.shard_clips(shard)
        with torch.inference_mode():
            maps, failures = run.extract_shard(
                positions, itertools.chain.from_iterable(map(self._fetch, answers))
            )
        stores.write_shard(shard, maps, failures)
        run.check(stores.failures())
        return Report(
            *self._claim(),
            len(positions),
            tuple(run.failures[num_failures:]),
            self._forward.seconds - forward_seconds,
            run.decode_wait_seconds - decode_wait_seconds,
            run.num_decoded - num_decoded,
        )


class _Silent(ExtractionProgress):
    def advance(self, count: int, **state: Any) -> None:
        """The cluster's driver tells of all workers."""


# ---- the driver ---------------------------------------------------------------------------------


@dataclass
class _Totals:
    num_rows: int = 0
    num_shards: int = 0
    num_lost: int = 0
    forward_seconds: float = 0.0
    decode_wait_seconds: float = 0.0
    num_decoded: int = 0
    failures: list[ClipFailure] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.num_rows += report.num_rows
        self.num_shards += report.num_rows > 0
        self.forward_seconds += report.forward_seconds
        self.decode_wait_seconds += report.decode_wait_seconds
        self.num_decoded += report.num_decoded
        self.failures += report.failures


class _Cluster:
    """Workers, decoders, and which worker each awaited report comes from."""

    def __init__(
        self,
        ray: Any,
        make_tools: Callable[[], Tools],
        plan: ViewPlan,
        positions_of: Callable[[int], range],
        settings: BackboneSettings,
        num_workers: int | None,
    ) -> None:
        self._ray = ray
        self._make_tools = make_tools
        self._plan = plan
        self._positions_of = positions_of
        self._clip_timeout_seconds = settings.clip_timeout_seconds
        self._num_workers = num_workers
        self._num_decoders = settings.num_decode_workers or 1  # per worker
        self._prefetch_bytes = settings.prefetch_bytes
        self._precision = settings.precision
        self._resources: dict[str, Any] = {}
        self.workers: list[Any] = []
        self._decoders: list[Any] = []
        self._turn = itertools.count()
        self._awaited: dict[Any, Any] = {}

    def connect(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
        if os.environ.get("RAY_ADDRESS"):
            self._ray.init(logging_level="error", log_to_driver=False)
            return
        needed = (self._num_workers or 0) * (1 + self._count_decoders(0, 0))
        self._ray.init(
            num_cpus=max(os.cpu_count() or 1, needed),
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
        )

    @property
    def num_decoders(self) -> int:
        """Of all backbones together."""
        return len(self._decoders)

    @property
    def means(self) -> Means:
        """What the cluster has to work with now."""
        return Means(
            num_decode_workers=self.num_decoders,
            is_auto=self._num_decoders == "auto",
            num_cores=int(self._resources.get("CPU", 1)),
            device="cuda" if self._resources.get("GPU") else "cpu",
            precision=self._precision,
        )

    def run(self, totals: _Totals) -> Iterator[Report]:
        """Reports of finished shards until the store is complete."""
        while True:
            self._grow()
            for worker in self.workers:
                if not any(each is worker for each in self._awaited.values()):
                    for _ in range(_SHARDS_PER_WORKER):
                        self._awaited[worker.claim.remote()] = worker
            ready, _ = self._ray.wait(list(self._awaited), timeout=_POLL_SECONDS)
            reports = [report for ref in ready if (report := self._receive(ref, totals))]
            yield from (report for report in reports if report.num_rows)
            if any(report.is_complete for report in reports):
                return
            if reports and all(r.claimed is None and not r.num_rows for r in reports):
                time.sleep(_POLL_SECONDS)  # others hold what is left

    def _receive(self, ref: Any, totals: _Totals) -> Report | None:
        """The report behind `ref`, its worker set to work again; None if the worker is lost."""
        worker = self._awaited.pop(ref, None)
        if worker is None:  # lost meanwhile
            return None
        try:
            report: Report = self._ray.get(ref)
        except UserError as error:
            raise getattr(error, "cause", error) from None
        except self._ray.exceptions.RayError as error:
            self._drop(worker, error, totals)
            return None
        if report.claimed is not None:
            self._start(worker, report.claimed)
        return report

    def _start(self, worker: Any, shard: int) -> None:
        most_bytes = shared_bytes(self._prefetch_bytes, 1)
        jobs = self._plan.jobs(self._positions_of(shard), most_bytes)
        answers = [self._next_decoder().decode.remote(job) for job in jobs]
        self._awaited[worker.extract.remote(shard, answers)] = worker

    def _next_decoder(self) -> Any:
        return self._decoders[next(self._turn) % len(self._decoders)]

    def _drop(self, worker: Any, error: Exception, totals: _Totals) -> None:
        totals.num_lost += 1
        self._ray.kill(worker)  # what is left of it must not keep its claims
        self.workers.remove(worker)
        self._awaited = {ref: each for ref, each in self._awaited.items() if each is not worker}
        if totals.num_lost > _MAX_LOSSES:
            raise UserError(
                f"{totals.num_lost} workers were lost, the last one by {_first_line(error)}; look "
                "at Ray's logs, then run the same command, which goes on from the finished shards"
            )
        console.print(f"a worker was lost ({_first_line(error)}); another one takes its place")

    def _grow(self) -> None:
        """Workers and decoders for all machines that the cluster has by now."""
        self._resources = self._ray.cluster_resources()
        num_gpus = int(self._resources.get("GPU", 0))
        num_cpus = int(self._resources.get("CPU", 1))
        num_backbones = self._num_workers or num_gpus
        num_decoders = self._count_decoders(num_cpus, num_backbones)
        wanted = num_backbones or max(1, num_cpus // (1 + num_decoders))
        while len(self.workers) < wanted:
            actor = self._ray.remote(ShardWorker)
            needs = {"num_gpus": 1, "num_cpus": 0} if num_gpus else {"num_cpus": 1}
            self.workers.append(
                actor.options(max_restarts=0, **needs).remote(os.getcwd(), self._make_tools, _fetch)
            )
        while len(self._decoders) < wanted * num_decoders:
            actor = self._ray.remote(DecodeWorker)
            # They book no CPU: those of a lost machine start again on what is left, where all CPUs
            # may be booked. `wanted` sees to it that there is one for each.
            lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
            actor = actor.options(scheduling_strategy="SPREAD", **lasting)
            self._decoders.append(
                actor.remote(os.getcwd(), self._clip_timeout_seconds, self._plan.warm_up)
            )

    def _count_decoders(self, num_cpus: int, num_backbones: int) -> int:
        """Decoders for each backbone; "auto": its share of the CPUs, one of which is its own.

        Nothing is measured here, because machines come and go. Without a number of backbones, as on
        a cluster without GPUs, each has one decoder.
        """
        if self._num_decoders != "auto":
            return self._num_decoders
        share = num_cpus // num_backbones - 1 if num_backbones else 1
        return max(1, min(share, _MOST_DECODERS))


def _fetch(answer: Any) -> list[Decoded]:
    import ray

    return ray.get(answer)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
