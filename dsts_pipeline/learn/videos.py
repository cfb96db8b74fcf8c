"""Batches of frames straight from videos, in place of a store's maps.

Enters: a clip index and how clips are viewed, decode processes. Leaves: `FeatureBatch`es whose
`maps` are frames uint8 `[B, T, H, W, 3]`. In training every epoch sees another view of a clip,
which follows from the seed, the clip and the epoch's number, so that a stopped training sees the
same ones again; in evaluation a clip has its one plain view.

A clip that cannot be decoded leaves its batch, which is then smaller; it is listed with its reason,
not asked for again, and never replaced. Several processes need batches of one size: there it ends
the training. Clips are asked for and decoded as in an extraction: by `FrameRequest`s, in processes
under a watchdog, frames ahead bounded in bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.groups import number_groups
from dsts_pipeline.extract.decode_pool import Decoded, DecodePool
from dsts_pipeline.extract.progress import ClipFailure, check_failures
from dsts_pipeline.extract.views import ViewPlan, ViewRow, Views
from dsts_pipeline.feed import FeatureBatch, ServesBatches


class VideoFeed:
    """Serves batches of the clips of one split, a row per clip, numbered as in the clip index.

    Args:
        plan: Index, input and augmentation; its views' count does not matter.
        split: Whose clips.
        pool: Decodes; may be shared by feeds that are not read at the same time.
        left_out: Ids of clips that are not served, such as those that have no map in the store.
        max_failed_fraction: Clips that cannot be decoded and are tolerated, of the split's.
        may_shrink: Whether a batch may be smaller than asked for.
        num_work_threads: Cores that the training computes on, see `DecodePool.adapt`.

    Attributes:
        epoch: Whose views are served.
        failures: Clips that could not be decoded so far, by id with the reason.
    """

    def __init__(
        self,
        plan: ViewPlan,
        split: str,
        pool: DecodePool,
        *,
        left_out: Iterable[str] = (),
        max_failed_fraction: float = 0.01,
        may_shrink: bool = True,
        num_work_threads: int = 0,
    ) -> None:
        clips = plan.index.clips
        gone = set(left_out)
        numbers = [n for n, c in enumerate(clips) if c.split == split and c.id not in gone]
        self.plan = plan
        self.pool = pool
        self.rows = np.array(numbers, dtype=np.int64)
        self.labels = np.array([clips[n].label for n in numbers], dtype=np.int64)
        self.groups = np.array([clips[n].id for n in numbers])
        origins = [clips[n].group for n in numbers]
        self.origins = number_groups(self.groups.tolist(), origins)
        self.epoch = 0
        self.failures: dict[str, str] = {}
        self._max_failed_fraction = max_failed_fraction
        self._may_shrink = may_shrink
        self._num_work_threads = num_work_threads
        self._plain_plan = replace(plan, views=Views())

    @property
    def shards(self) -> np.ndarray:
        """Of a store, for the samplers: videos have none."""
        return np.zeros(len(self.rows), dtype=np.int64)

    def name_of(self, row: int) -> str:
        """The clip id of a row."""
        return self.plan.index.clips[row].id

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]:
        """The batches of `order`, in the views of `epoch`.

        Raises:
            DataError: Too many clips cannot be decoded, or all of a batch.
        """
        plan = self.plan if self.plan.views.augmentation.is_on else self._plain_plan
        return self._decode(order, plan, self.epoch if plan is self.plan else 0)

    @property
    def plain(self) -> ServesBatches:
        """The same clips in their one plain view, for evaluation."""
        return _Plain(self)

    def pairs(
        self, order: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[FeatureBatch, FeatureBatch]]:
        """UDL's training and validation batches of `order`, in the views of `epoch`."""
        flat = self.batches(rows for pair in order for rows in pair)
        yield from zip(flat, flat, strict=True)

    def _decode(
        self, order: Iterable[np.ndarray], plan: ViewPlan, view: int
    ) -> Iterator[FeatureBatch]:
        batches = [[int(row) for row in rows] for rows in order]
        asked = [[n for n in b if self.name_of(n) not in self.failures] for b in batches]
        views = [[plan.row(number, view) for number in batch] for batch in asked]
        jobs = (plan.job([row]) for batch in views for row in batch)
        answers = self.pool.run(jobs)
        num_passed = 0
        work_seconds = 0.0
        for wanted, batch in zip(batches, views, strict=True):
            assembled = self._assemble(batch, [next(answers) for _ in batch], len(wanted))
            started = time.monotonic()
            yield assembled
            work_seconds += time.monotonic() - started
            num_passed += len(batch)
            seconds = work_seconds / num_passed if num_passed else None
            self.pool.adapt(seconds, num_work_threads=self._num_work_threads)

    def _assemble(
        self, rows: Sequence[ViewRow], answers: Sequence[Decoded], num_wanted: int
    ) -> FeatureBatch:
        found = []
        for row, answer in zip(rows, answers, strict=True):
            if answer.frames is None:
                self._note_failure(self.name_of(row.clip), answer.reason)
            else:
                found.append((row, answer.frames[0]))
        if not found:
            raise DataError(
                f"no clip of a batch of {num_wanted} can be decoded ({self._list_failures()}); run "
                "`python cli.py prepare` to see which files changed"
            )
        if len(found) < num_wanted and not self._may_shrink:
            raise DataError(
                f"{self._list_failures()}: cannot be decoded, and several processes need batches "
                "of one size; replace the file, or run `python cli.py prepare` and `extract`, which"
                " list it as failed, or train with one process"
            )
        return FeatureBatch(
            maps=torch.from_numpy(np.stack([frames for _, frames in found])),
            labels=torch.tensor([row.label for row, _ in found], dtype=torch.int64),
            rows=torch.tensor([row.clip for row, _ in found], dtype=torch.int64),
        )

    def _note_failure(self, clip_id: str, reason: str) -> None:
        self.failures[clip_id] = reason
        check_failures(
            [ClipFailure(*item) for item in self.failures.items()],
            len(self.rows),
            max_failed_fraction=self._max_failed_fraction,
        )

    def _list_failures(self) -> str:
        return "; ".join(f"{clip_id}: {reason}" for clip_id, reason in self.failures.items())


class _Plain:
    """A feed's clips without augmentation."""

    def __init__(self, feed: VideoFeed) -> None:
        self._feed = feed

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]:
        """The batches of `order`, a view per clip."""
        return self._feed._decode(order, self._feed._plain_plan, 0)
