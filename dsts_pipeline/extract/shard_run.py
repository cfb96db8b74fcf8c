"""One shard after the other: answers of decoders in, maps and reasons out.

Enters: what decode processes answered for the clips of a shard, in order. Leaves: the shard's maps
float32 [n, C, T, H, W], and the reason of every row that has none. Batches are cut at the same
places whoever decoded, so that the same maps come out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from dsts_pipeline.extract.failures import ClipFailure, check_failures
from dsts_pipeline.extract.forward import ForwardPass, MapMaker, map_shapes
from dsts_pipeline.extract.frames.decode_job import Decoded
from dsts_pipeline.extract.frames.views import ViewPlan
from dsts_pipeline.extract.progress import ExtractionProgress


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
