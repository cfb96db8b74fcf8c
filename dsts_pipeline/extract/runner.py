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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, Protocol

import numpy as np
import torch

from dsts_pipeline.base.children import exit_on_sigterm
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.augmentation import import_transforms
from dsts_pipeline.extract.decode_pool import (
    PREFETCH_BYTES,
    Decoded,
    DecodeFunction,
    DecodeJob,
    DecodePool,
    decode_clip,
)
from dsts_pipeline.extract.forward import Computing, ForwardPass, MapMaker, Precision, map_shapes
from dsts_pipeline.extract.progress import (
    ClipFailure,
    ExtractionProgress,
    ExtractionSummary,
    check_failures,
    show_progress,
)
from dsts_pipeline.extract.views import ViewPlan, Views

# ---- One shard after the other: answers of decoders in, maps and reasons out. -------------------
#
# Enters: what decode processes answered for the clips of a shard, in order. Leaves: the shard's
# maps float32 [n, C, T, H, W], and the reason of every row that has none. Batches are cut at the
# same places whoever decoded, so that the same maps come out.


class KnownMaps(Protocol):
    """Maps that need not be made: by position in the store, a row that `read` knows."""

    @property
    def rows(self) -> Mapping[int, int]: ...
    def read(self, positions: Sequence[int]) -> np.ndarray: ...


class ShardRun:
    """The state of one extraction: failures so far and where time went."""

    def __init__(
        self,
        plan: ViewPlan,
        backbone: MapMaker,
        forward: ForwardPass,
        batch_size: int,
        max_failed_fraction: float,
        progress: ExtractionProgress,
        earlier: KnownMaps | None = None,
    ) -> None:
        self._plan, self._backbone, self._forward = plan, backbone, forward
        self._batch_size, self._max_failed_fraction = batch_size, max_failed_fraction
        self._progress, self._earlier = progress, earlier
        self._taken = {} if earlier is None else earlier.rows
        self.failures: list[ClipFailure] = []
        self.num_clips = 0
        self.decode_wait_seconds = 0.0

    def extract_shard(
        self, positions: range, answers: Iterator[Decoded]
    ) -> tuple[list[np.ndarray], dict[int, str]]:
        """Maps float32 [n, C, T, H, W] of a shard's rows, and the reasons of those that failed.

        One array per tap of the backbone.
        """
        shapes = map_shapes(self._backbone)
        maps = [np.zeros((len(positions), *shape), np.float32) for shape in shapes]
        failures: dict[int, str] = {}
        views = self._views(positions, answers)
        for start in range(0, len(positions), self._batch_size):
            batch = positions[start : start + self._batch_size]
            frames = self._collect(batch, views, failures)
            self._forward.submit(frames, *(each[start : start + len(batch)] for each in maps))
            self.num_clips += len(batch)
            self._progress.advance(
                len(batch),
                num_failed=len(self.failures),
                forward_seconds=self._forward.seconds,
                decode_wait_seconds=self.decode_wait_seconds,
            )
        self._forward.finish()
        if self._earlier is not None:  # their places in the batches stayed empty
            taken = [position for position in positions if position in self._taken]
            maps[0][np.array(taken, int) - positions.start] = self._earlier.read(taken)
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
        made = (position for position in positions if position not in self._taken)
        for _, rows in groupby(self._plan.rows[position].clip for position in made):
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


# ---- ------------------------------------------------------------------------------------------
# Which shards a run works on: claimed as its decode processes get to them, handed in in order.

_MAX_CLAIMED = 3  # more would leave less to other processes, and more to lose when one is stopped


class ShardWriter(Protocol):
    """What the runner asks of a store's writer; positions count the store's rows."""

    def pending_shards(self) -> list[int]: ...
    def claim(self, *, wait: bool = True) -> int | None: ...
    def claim_shard(self, shard: int) -> bool: ...
    def shard_clips(self, shard: int) -> range: ...
    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None: ...
    def flush(self) -> None: ...
    def failures(self) -> list[dict[str, Any]]: ...


class ShardSource(Protocol):
    """Where shards are claimed."""

    def claim(self, *, wait: bool = True) -> int | None: ...
    def shard_clips(self, shard: int) -> range: ...


class ShardsAhead:
    """The shards of this run.

    Attributes:
        claimed: Numbers of those that are not handed in yet, in order: the one in work, and those
            that the decode processes look ahead to, `_MAX_CLAIMED` at most.
    """

    def __init__(
        self, writer: ShardSource, plan_jobs: Callable[[range], Iterator[DecodeJob]]
    ) -> None:
        self._writer, self._plan_jobs = writer, plan_jobs
        self.claimed: deque[int] = deque()

    def jobs(self) -> Iterator[DecodeJob | None]:
        """The jobs of every shard of this run; None: not now, write what is claimed.

        Waits for other processes only with empty hands, or two could wait for each other.
        """
        while True:
            if len(self.claimed) >= _MAX_CLAIMED:
                yield None
                continue
            shard = self._writer.claim(wait=not self.claimed)
            if shard is not None:
                self.claimed.append(shard)
                yield from self._plan_jobs(self._writer.shard_clips(shard))
            elif self.claimed:
                yield None
            else:
                return


# ---- Several stores written side by side: the maps of several taps from one pass over the clips.
#
# Enters: a store's writer for each tap, all with the same rows and the same shards. Leaves: what
# the runner sees as one writer. A shard is claimed in all stores at once; those that have it
# already, or whose lock another process holds, are left alone.


class TapStores:
    """Writers of one store per tap.

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


# ---- Clips -> feature maps, shard by shard: decode processes ahead, one forward pass, one writer.
#
# Enters: a clip index, a frozen backbone, a writer of shards. Leaves: shards in the store, and a
# summary with every clip that could not be decoded.
#
# The same store comes out whatever the number of decode processes, of extractions that share it,
# and wherever one was stopped: a shard is done wholly or again from its start, its batches are cut
# at the same places, and a clip that fails leaves its place in the batch empty instead of moving
# its neighbours up.


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
