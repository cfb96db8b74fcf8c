"""Many trainings in one pass over the maps: every batch is read and moved once, for all of them.

Enters: members that agree on the order of batches and on what is held out. Leaves: their heads,
each trained as if it were alone.

Choice: UDL takes a training and a validation batch an iteration, an ordinary step takes one. All
members of a pass go through UDL's pairs if any of them trains by UDL; one that does not learns from
the training batches, which are those of its own epoch alone, and leaves the validation batches be.
So every variant makes the same number of updates of d from the same batches in the same order.
Evaluations and statistics of norms read their maps once for all members, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import FeatureBatch, FeatureFeed
from dsts_pipeline.learn.ablation.member import Member, Status
from dsts_pipeline.learn.passes import Asking, make_passes_together
from dsts_pipeline.learn.stopping import StopRequest, TrainingStopped

Tell = Callable[[Sequence[Status]], None]
OnFinished = Callable[[Member], None]


class Together:
    """The pass.

    Args:
        members: What trains.
        feed: The same as theirs.
        tell: Given the status of all members after every batch.
        on_finished: Called with each member whose head is ready; its checkpoint goes afterwards.
        stop: A request to save all and leave.
    """

    def __init__(
        self,
        members: Sequence[Member],
        feed: FeatureFeed,
        device: torch.device,
        *,
        tell: Tell = lambda statuses: None,
        on_finished: OnFinished = lambda member: None,
        stop: StopRequest | None = None,
    ) -> None:
        self.members, self.feed, self.device = list(members), feed, device
        self.tell, self.on_finished, self.stop = tell, on_finished, stop
        for member in self.members:
            self._check_alike(member)

    def run(self) -> None:
        """Train all to their ends.

        Raises:
            TrainingStopped: A stop was asked for; all are saved.
        """
        opened: list[Member] = []
        try:
            fresh = []
            for member in self.members:
                resumed = member.open()
                opened.append(member)
                if not resumed:
                    fresh.append(member)
            self._make_passes(fresh, lambda member: member.training.start())
            self._finish()
            while going := [member for member in self.members if member.is_going]:
                epoch = min(member.training.epoch for member in going)
                self._run_epoch([m for m in going if m.training.epoch == epoch])
                self._finish()
        finally:
            for member in opened:
                member.close()

    def _run_epoch(self, together: list[Member]) -> None:
        """The epoch's batches; members that went on from later ones join in at theirs."""
        left = {member: member.training.remaining() for member in together}
        for member in together:
            with member.within():
                member.training.begin_epoch()
        longest = max(left.values(), key=len)
        num = len(longest)
        starts = {member: num - len(rows) for member, rows in left.items()}
        pairs = [m for m in together if m.training.udl and left[m]]
        first_pair = min((starts[member] for member in pairs), default=num)
        train_rows = [rows[0] if isinstance(rows, tuple) else rows for rows in longest]
        paired = max((left[member] for member in pairs), key=len, default=[])
        val_rows: list[np.ndarray | None] = [None] * first_pair + [val for _, val in paired]
        for place, (batch, val_batch) in enumerate(self._batches(train_rows, val_rows)):
            for member in together:
                if starts[member] <= place and member.failure is None:
                    member.step(batch, val_batch)
            self.tell([member.status for member in self.members])
            self._leave_if_asked()
        ended = [member for member in together if member.failure is None]
        self._make_passes(ended, lambda member: member.training.end_epoch())
        for member in ended:
            member.save()
        self.tell([member.status for member in self.members])
        self._leave_if_asked()

    def _batches(
        self, train_rows: list[np.ndarray], val_rows: list[np.ndarray | None]
    ) -> Iterator[tuple[FeatureBatch, FeatureBatch | None]]:
        flat = (
            rows
            for pair in zip(train_rows, val_rows, strict=True)
            for rows in pair
            if rows is not None
        )
        batches = (batch.to(self.device) for batch in self.feed.batches(flat))
        for val in val_rows:
            batch = next(batches)
            yield batch, None if val is None else next(batches)

    def _finish(self) -> None:
        """Bring those to their end that have no epoch to come."""
        done = [
            m for m in self.members if not m.finished and m.failure is None and m.training.is_done
        ]
        self._make_passes(done, lambda member: member.training.finish())
        for member in done:
            if member.failure is None:
                member.finished = True
                self.on_finished(member)
                member.forget()
        if done:
            self.tell([member.status for member in self.members])

    def _make_passes(self, members: Sequence[Member], ask: Callable[[Member], Asking[Any]]) -> None:
        asking = [(member.guard(ask(member)), member.within) for member in members]
        make_passes_together(asking, self.feed, self.device)

    def _leave_if_asked(self) -> None:
        if self.stop is None or not self.stop.requested:
            return
        going = [member for member in self.members if member.is_going]
        for member in going:
            member.save()
        raise TrainingStopped(
            f"asked to stop: {len(going)} trainings saved; the same command goes on from there",
            self.stop.exit_status,
        )

    def _check_alike(self, member: Member) -> None:
        first, own = self.members[0].training, member.training
        same = (
            first.sampler.digest == own.sampler.digest
            and first.sampler.seed == own.sampler.seed
            and np.array_equal(first.heldout, own.heldout)
        )
        if own.sampler.class_balanced:
            same = same and first.udl == own.udl
        if not same:
            raise SettingsError(
                f"{member.name} and {self.members[0].name} go through other batches; train them "
                "in passes of their own"
            )
