"""Clips -> feature maps, shard by shard: decode processes ahead, one forward pass, one writer.

Enters: which frames are wanted (a `ViewPlan`), a frozen backbone, a writer of shards. Leaves:
shards in the store, and a summary with every clip that could not be decoded.

The same store comes out whatever the number of decode processes, of extractions that share it, and
wherever one was stopped: a shard is done wholly or again from its start, its batches are cut at the
same places, and a clip that fails leaves its place in the batch empty instead of moving its
neighbours up. (But decord may read a clip of a damaged file in one run and fail in the next.)
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dsts_pipeline.base.children import exit_on_sigterm
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract.decode_pool import Decoded, DecodeFunction, DecodePool, decode_counted
from dsts_pipeline.extract.device_decoding import DevicePool, stays_on_device
from dsts_pipeline.extract.forward import (
    ForwardPass,
    MapMaker,
    choose_computing,
    count_work_threads,
    input_shape,
    map_shapes,
)
from dsts_pipeline.extract.num_decoders import NumWorkers, choose_num_decoders, count_cores
from dsts_pipeline.extract.progress import (
    ADVICE_SECONDS,
    ClipFailure,
    ExtractionProgress,
    ExtractionSummary,
    Means,
    advise,
    check_failures,
    show_progress,
)
from dsts_pipeline.extract.views import FrameRequest, ViewPlan

_MAX_CLAIMED = 3  # more would leave less to other processes, and more to lose when one is stopped


class ShardWriter(Protocol):
    """What is asked of a store's writer; positions count the store's rows."""

    def pending_shards(self) -> list[int]: ...
    def claim(self, *, wait: bool = True) -> int | None: ...
    def claim_shard(self, shard: int) -> bool: ...
    def shard_clips(self, shard: int) -> range: ...
    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None: ...
    def flush(self) -> None: ...
    def failures(self) -> list[dict[str, Any]]: ...


class KnownMaps(Protocol):
    """Maps that need not be made: by position in the store, a row that `read` knows."""

    @property
    def rows(self) -> Mapping[int, int]: ...
    def read(self, positions: Sequence[int]) -> np.ndarray: ...


def extract_features(
    plan: ViewPlan,
    backbone: MapMaker,
    writer: ShardWriter | Sequence[ShardWriter],
    settings: BackboneSettings = BackboneSettings(),
    *,
    decode: DecodeFunction = decode_counted,
    earlier: KnownMaps | None = None,
) -> ExtractionSummary:
    """Write every pending shard of the store; afterwards `writer.finish` may be called.

    Ctrl-C, SIGTERM or a kill lose the shards in work at most; the next run starts there. Shards
    that another extraction holds are left to it; if it dies, they are taken over.

    Args:
        plan: The rows of the store, and how their frames are decoded.
        writer: Of the store; of a backbone with several taps, one per tap.
        settings: How much is decoded ahead and how the backbone is run; what `plan` and `backbone`
            were made by is not looked at.
        decode: What the decode processes do with a request; must be importable by name.
        earlier: Maps of a former store that are copied instead of made; of one tap alone.

    Raises:
        DataError: Too many clips cannot be decoded, or stored.
        StoreError: A shard cannot be written.
        UserError: Not even one clip fits the device's memory.
    """
    stores = TapStores(writer if isinstance(writer, Sequence) else [writer])
    num_pending = sum(len(stores.shard_clips(shard)) for shard in stores.pending_shards())
    taken = {} if earlier is None else earlier.rows
    if earlier is not None:
        _copy_whole_shards(stores, earlier)
    started = time.monotonic()
    if plan.warm_up is not None:
        plan.warm_up()  # here first, where an error can be told
    with (
        exit_on_sigterm(),
        _open_pool(plan, backbone.device, settings, decode) as pool,
        show_progress(f"extract {backbone.name}", num_pending) as progress,
        torch.inference_mode(),
    ):
        forward = ForwardPass(backbone, choose_computing(settings))
        run = ShardRun(plan, backbone, forward, settings, progress, earlier, pool)

        def plan_jobs(positions: range) -> Iterator[FrameRequest]:
            wanted = [position for position in positions if position not in taken]
            return plan.jobs(wanted, shared_bytes(settings.prefetch_bytes, pool.num_workers))

        shards = ShardsAhead(stores, plan_jobs)
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
    seconds = time.monotonic() - started
    advice = ""
    if run.num_clips and seconds >= ADVICE_SECONDS:
        shares = (forward.seconds / seconds, run.decode_wait_seconds / seconds)
        advice = advise(*shares, run.means)
    return ExtractionSummary(
        num_clips=run.num_clips,
        failures=tuple(run.failures),
        seconds=seconds,
        forward_seconds=forward.seconds,
        decode_wait_seconds=run.decode_wait_seconds,
        num_shards=num_shards,
        num_decode_workers=pool.num_workers,
        advice=advice,
        num_shown=run.num_clips * backbone.num_frames,
        num_decoded=run.num_decoded,
    )


def _open_pool(
    plan: ViewPlan, device: torch.device, settings: BackboneSettings, decode: DecodeFunction
) -> DecodePool:
    """Threads that decode on the backbone's device where all can stay there, else processes."""
    limits: dict[str, Any] = {
        "clip_timeout_seconds": settings.clip_timeout_seconds,
        "prefetch_bytes": settings.prefetch_bytes,
    }
    if stays_on_device(plan, device):
        return DevicePool(device, settings.num_decode_workers, **limits)
    return DecodePool(settings.num_decode_workers, decode=decode, warm_up=plan.warm_up, **limits)


def shared_bytes(prefetch_bytes: int, num_decode_workers: int) -> int:
    """How many bytes of frames of clips of one file are decoded at once.

    Each process may have as many in work and as many waiting within `prefetch_bytes`.
    """
    return prefetch_bytes // (2 * max(1, num_decode_workers))


def _copy_whole_shards(stores: TapStores, known: KnownMaps) -> None:
    """Write the pending shards of which every map is known already."""
    for shard in stores.pending_shards():
        positions = stores.shard_clips(shard)
        if all(position in known.rows for position in positions) and stores.claim_shard(shard):
            stores.write_shard(shard, [known.read(positions)])


# ---- one shard after the other ------------------------------------------------------------------


class ShardRun:
    """The state of one extraction: failures so far and where time went."""

    def __init__(
        self,
        plan: ViewPlan,
        backbone: MapMaker,
        forward: ForwardPass,
        settings: BackboneSettings,
        progress: ExtractionProgress,
        earlier: KnownMaps | None = None,
        pool: DecodePool | None = None,
    ) -> None:
        self._plan = plan
        self._backbone = backbone
        self._forward = forward
        self._settings = settings
        self._progress = progress
        self._earlier = earlier
        self._pool = pool
        self._num_cores = count_cores()
        self._taken = {} if earlier is None else earlier.rows
        self.failures: list[ClipFailure] = []
        self.num_clips = 0
        self.num_decoded = 0
        self.decode_wait_seconds = 0.0

    def extract_shard(
        self, positions: range, answers: Iterator[Decoded]
    ) -> tuple[list[np.ndarray], dict[int, str]]:
        """Maps float32 [n, C, T, H, W] of a shard's rows, and the reasons of those that failed.

        One array per tap of the backbone.

        Args:
            answers: Of the decode processes, one per clip, in order.
        """
        shapes = map_shapes(self._backbone)
        maps = [np.zeros((len(positions), *shape), np.float32) for shape in shapes]
        failures: dict[int, str] = {}
        views = self._views(positions, answers)
        batch_size = self._settings.batch_size
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            frames = self._collect(batch, views, failures)
            self._forward.submit(frames, *(each[start : start + len(batch)] for each in maps))
            self.num_clips += len(batch)
            if self._pool is not None:
                self._pool.adapt(
                    self._forward.seconds_per_clip, num_work_threads=self._forward.num_threads
                )
            self._progress.advance(
                len(batch),
                num_failed=len(self.failures),
                forward_seconds=self._forward.seconds,
                decode_wait_seconds=self.decode_wait_seconds,
                means=self.means,
            )
        self._forward.finish()
        if self._earlier is not None:  # their places in the batches stayed empty
            taken = [position for position in positions if position in self._taken]
            maps[0][np.array(taken, int) - positions.start] = self._earlier.read(taken)
        return maps, failures

    @property
    def means(self) -> Means:
        """What this extraction has to work with now."""
        number = 0 if self._pool is None else self._pool.num_workers
        return Means(
            num_decode_workers=number,
            is_auto=self._pool is not None and self._pool.is_auto,
            num_cores=self._num_cores,
            device=self._backbone.device.type,
            precision=self._settings.precision,
        )

    def check(self, stored: Sequence[Mapping[str, Any]]) -> None:
        """Stop if too many clips failed; `stored` may know of some whose maps were refused."""
        failures = [ClipFailure(failure["id"], failure["reason"]) for failure in stored]
        most = self._settings.max_failed_fraction
        for known in (failures, self.failures):
            check_failures(known, len(self._plan.index.clips), max_failed_fraction=most)

    def _views(
        self, positions: range, answers: Iterator[Decoded]
    ) -> Iterator[tuple[np.ndarray | None, str]]:
        """Frames [T, H, W, C] or None and the reason, for each row; an answer is for one clip."""
        made = (position for position in positions if position not in self._taken)
        for _, rows in groupby(self._plan.rows[position].clip for position in made):
            decoded = next(answers)
            self.num_decoded += decoded.num_decoded
            for view, _ in enumerate(rows):
                yield None if decoded.frames is None else decoded.frames[view], decoded.reason

    def _collect(
        self,
        batch: range,
        views: Iterator[tuple[np.ndarray | None, str]],
        failures: dict[int, str],
    ) -> np.ndarray | Tensor:
        """Frames of a batch uint8 [n, T, H, W, C]; zeros, and a reason, where there are none."""
        shape = (len(batch), *input_shape(self._backbone))
        frames: Any = np.zeros(shape, np.uint8)
        if isinstance(self._pool, DevicePool):
            frames = torch.zeros(shape, dtype=torch.uint8, device=self._backbone.device)
        started = time.monotonic()
        for row, position in enumerate(batch):
            if position in self._taken:
                continue
            decoded, reason = next(views)
            if decoded is not None:
                frames[row] = decoded
                continue
            failures[position] = reason
            self.failures.append(ClipFailure(self._plan.clip_of(position).id, reason))
        self.decode_wait_seconds += time.monotonic() - started
        self.check([])
        return frames


# ---- which shards a run works on ----------------------------------------------------------------


class ShardsAhead:
    """The shards of this run, claimed as its decode processes get to them.

    Attributes:
        claimed: Numbers of those that are not handed in yet, in order: the one in work, and those
            that the decode processes look ahead to, `_MAX_CLAIMED` at most.
    """

    def __init__(
        self, stores: TapStores, plan_jobs: Callable[[range], Iterator[FrameRequest]]
    ) -> None:
        self._stores = stores
        self._plan_jobs = plan_jobs
        self.claimed: deque[int] = deque()

    def jobs(self) -> Iterator[FrameRequest | None]:
        """The requests of every shard of this run; None: not now, write what is claimed.

        Waits for other processes only with empty hands, or two could wait for each other.
        """
        while True:
            if len(self.claimed) >= _MAX_CLAIMED:
                yield None
                continue
            shard = self._stores.claim(wait=not self.claimed)
            if shard is not None:
                self.claimed.append(shard)
                yield from self._plan_jobs(self._stores.shard_clips(shard))
            elif self.claimed:
                yield None
            else:
                return


class TapStores:
    """The stores of several taps, written side by side from one pass over the clips.

    A shard is claimed in all stores at once; those that have it already, or whose lock another
    process holds, are left alone.

    Raises:
        ValueError: Their shards are not of the same rows.
    """

    def __init__(self, writers: Sequence[ShardWriter]) -> None:
        self._writers = tuple(writers)
        self._held: dict[int, list[int]] = {}
        if len({writer.shard_clips(0) for writer in self._writers}) != 1:
            raise ValueError("the stores of several taps need shards of the same rows")

    def pending_shards(self) -> list[int]:
        """Numbers of the shards that some store lacks."""
        return sorted({shard for writer in self._writers for shard in writer.pending_shards()})

    def claim(self, *, wait: bool = True) -> int | None:
        """Lock a shard that some store lacks, in all that lack it."""
        for may_wait in (False, True) if wait else (False,):
            for writer in self._writers:
                shard = writer.claim(wait=may_wait)
                if shard is not None:
                    self._held[shard] = [
                        number
                        for number, each in enumerate(self._writers)
                        if each is writer or each.claim_shard(shard)
                    ]
                    return shard
        return None

    def claim_shard(self, shard: int) -> bool:
        """Lock this very shard in every store that lacks it; False if none can be had."""
        held = [number for number, each in enumerate(self._writers) if each.claim_shard(shard)]
        if held:
            self._held[shard] = held
        return bool(held)

    def shard_clips(self, shard: int) -> range:
        """Rows of a shard, the same in every store."""
        return self._writers[0].shard_clips(shard)

    def write_shard(
        self,
        shard: int,
        maps: Sequence[np.ndarray],
        failures: Mapping[int, str] | None = None,
    ) -> None:
        """Hand in the maps of every tap; those of stores that do not need them are dropped."""
        for number in self._held.pop(shard):
            self._writers[number].write_shard(shard, maps[number], failures)

    def flush(self) -> None:
        """Wait until what was handed in is on the disk."""
        for writer in self._writers:
            writer.flush()

    def failures(self) -> list[dict[str, Any]]:
        """Clips without a map in some store."""
        return [failure for writer in self._writers for failure in writer.failures()]


# ---- how long an extraction will take -----------------------------------------------------------

_NUM_BATCHES = 2


@dataclass(frozen=True)
class Forecast:
    """Seconds of work per clip, as measured on `num_clips` clips.

    `decode_seconds` is per clip of all decode processes together, their start left out, on
    `num_decoded` clips; `is_parallel` whether decoding goes on beside the forward passes. Where
    `num_decode_workers` was left open, one was timed, and as many as a run would take are assumed
    to be as fast beside each other. Where the time was over before one clip was through the
    backbone, `num_clips` is 0, `forward_seconds` a lower bound and `share_passed` how much of the
    backbone's weights that pass had come to.
    """

    num_clips: int
    decode_seconds: float
    forward_seconds: float
    is_parallel: bool
    num_decoded: int = 0
    num_decode_workers: int = 0
    share_passed: float = 1.0

    @property
    def is_lower_bound(self) -> bool:
        """Whether the work takes longer than is told here."""
        return self.num_clips == 0

    @property
    def seconds_per_clip(self) -> float:
        """The slower of both where they go on side by side, else their sum."""
        both = self.decode_seconds, self.forward_seconds
        return max(both) if self.is_parallel else sum(both)


def forecast_extraction(
    plan: ViewPlan,
    backbone: MapMaker,
    positions: Sequence[int],
    *,
    num_decode_workers: NumWorkers = 1,
    batch_size: int = 32,
    limit_seconds: float = math.inf,
) -> Forecast:
    """Time two batches (fewer if fewer are pending) of the rows at `positions`, evenly spread.

    A few clips are decoded and forwarded, nothing is kept.

    Choice: both halves are timed one after the other, because two batches are too few for a
    pipeline to settle. Where decoding and the backbone share processors the truth is slower.

    Args:
        limit_seconds: Fewer clips, and smaller batches, are timed where all would take longer; at
            least one is decoded and goes into the backbone, whose pass ends between two of its
            modules where the time is over.
    """
    began = time.monotonic()
    num_clips = min(len(positions), _NUM_BATCHES * batch_size)
    chosen = [positions[i * len(positions) // num_clips] for i in range(num_clips)]
    jobs = [job for position in chosen for job in plan.jobs([position])]
    frames = np.zeros((num_clips, *input_shape(backbone)), np.uint8)
    num_decoded = 0
    with DecodePool(num_decode_workers) as pool:
        num_timed = pool.num_workers
        for _ in pool.run(jobs[:1] * num_timed):
            pass  # starts the processes
        started = time.monotonic()
        for row, decoded in enumerate(pool.run(jobs)):
            if decoded.frames is not None:
                frames[row] = decoded.frames[0]
            num_decoded += 1
            if time.monotonic() - began > limit_seconds / 6:
                break
        decode_seconds = time.monotonic() - started
    clock = _PassClock(began + limit_seconds)
    num_passed, forward_seconds = _time_forward(backbone, frames, batch_size, clock)
    decode_seconds /= num_decoded
    forward_seconds /= max(1, num_passed)
    num_chosen = num_timed
    if num_decode_workers == "auto":
        threads = count_work_threads(backbone.device)
        num_chosen = choose_num_decoders(decode_seconds, forward_seconds, count_cores(), threads)
        decode_seconds /= num_chosen
    return Forecast(
        num_clips=num_passed,
        decode_seconds=decode_seconds,
        forward_seconds=forward_seconds,
        is_parallel=num_chosen > 0,
        num_decoded=num_decoded,
        num_decode_workers=num_chosen,
        share_passed=1.0 if num_passed else clock.share_of(backbone),
    )


def _time_forward(
    backbone: MapMaker, frames: np.ndarray, batch_size: int, clock: _PassClock
) -> tuple[int, float]:
    """How many clips were passed, and in how many seconds; 0 and a bound where not even one was."""

    def run(batch: np.ndarray) -> float:
        started = time.monotonic()
        backbone(torch.from_numpy(batch).to(backbone.device)).cpu().numpy()
        return time.monotonic() - started

    with torch.inference_mode():
        if clock.seconds_left < math.inf:
            started = time.monotonic()
            try:
                with clock.running():
                    alone = run(frames[:1])
            except _TimeOver:
                return 0, time.monotonic() - started
            if alone > clock.seconds_left:  # what the first pass sets up is timed, too
                return 1, alone
            alone = run(frames[:1])
            # What a pass sets up is not timed, so each batch goes through once more.
            fitting = int(clock.seconds_left / (1 + _NUM_BATCHES) / max(alone, 1e-6))
            if fitting < 1:
                return 1, alone
            batch_size = min(batch_size, fitting)
        run(frames[:batch_size])  # the first pass of a shape sets the backbone up
        frames = frames[: _NUM_BATCHES * batch_size]
        starts = range(0, len(frames), batch_size)
        return len(frames), sum(run(frames[start : start + batch_size]) for start in starts)


class _TimeOver(Exception):
    """A pass came to a module that would not end within its time."""


class _PassClock:
    """Ends a forward pass between two modules: nothing else can stop one that is on its way.

    Args:
        end: By `time.monotonic`.
    """

    def __init__(self, end: float) -> None:
        self._end = end
        self._entered = set[nn.Module]()
        self._longest = 0.0  # seconds between two modules

    @property
    def seconds_left(self) -> float:
        """Until the end; below 0 after it."""
        return self._end - time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block a module that, as the slowest, would end late raises _TimeOver."""
        before = time.monotonic()

        def look(module: nn.Module, _: object) -> None:
            nonlocal before
            now = time.monotonic()
            self._longest = max(self._longest, now - before)
            before = now
            if now + self._longest > self._end:
                raise _TimeOver
            self._entered.add(module)

        handle = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()

    def share_of(self, backbone: object) -> float:
        """Of the backbone's weights, those of the modules that passes came to, 0 to 1."""
        if not isinstance(backbone, nn.Module):
            return 0.0
        leaves = [each for each in self._entered if not any(each.children())]
        seen = {id(p): p.numel() for each in leaves for p in each.parameters(recurse=False)}
        total = sum(parameter.numel() for parameter in backbone.parameters())
        return sum(seen.values()) / max(1, total)
