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

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.children import BudgetOver, StopRequest, TrainingStopped
from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import FeatureBatch, FeatureFeed
from dsts_pipeline.learn.passes import EVALUATION_BATCH, Asking, make_passes_together
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.resume import CheckpointOptions, Keeper
from dsts_pipeline.learn.training import Recipe, Training

# ---- randomness ----------------------------------------------------------------------------------


class OwnRandomness:
    """Within `within()` torch's global generators are this one's; outside nobody notices.

    Args:
        device: Whose generator is kept apart besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states = self._read()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Draws in the block go on from where the last block ended."""
        outside = self._read()
        self._write(self._states)
        try:
            yield
        finally:
            self._states = self._read()
            self._write(outside)

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)


# ---- one member ----------------------------------------------------------------------------------

T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    """How far a member is.

    Args:
        done: Share of its steps, 0 to 1.
        loss, accuracy: Of the present epoch's training batches so far (of the last epoch's,
            before the first one); NaN at the very start.
        heldout_accuracy: Of the last epoch; None before its end or where nothing is held out.
    """

    name: str
    seed: int
    epoch: int
    num_epochs: int
    done: float
    loss: float
    accuracy: float
    heldout_accuracy: float | None
    finished: bool = False
    failure: str | None = None


class Member:
    """A training among others. All of its code runs in `within`, with its own randomness.

    Args:
        name: What it is called in messages; `recipe.seed` says which of that name.
        build: Makes the untrained head.

    Attributes:
        failure: Why it ended before its time; None if it did not.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        feed: FeatureFeed,
        recipe: Recipe,
        processes: Processes,
        checkpoints: CheckpointOptions | None = None,
    ) -> None:
        self.name = name
        self.finished = False
        self.failure: str | None = None
        self._randomness = OwnRandomness(processes.device)
        self._began = False
        with self.within():
            self.training = Training(build(), feed, recipe, processes)
            self.keeper = Keeper(self.training, checkpoints)

    @contextmanager
    def within(self) -> Iterator[None]:
        """The context of all that this training does; its time counts as the epoch's."""
        start = time.perf_counter()
        with self._randomness.within():
            tally = self.training.tally if self._began else None
            yield
        if tally is not None:
            tally.seconds += time.perf_counter() - start

    def open(self) -> bool:
        """Take its checkpoint's folder, and go on from there: whether there was a checkpoint."""
        with self.within():
            self.keeper.__enter__()
            resumed = self.keeper.resume()
        self._began = True
        return resumed

    def close(self) -> None:
        """Let others train in its checkpoint's folder."""
        self.keeper.__exit__()

    @property
    def is_going(self) -> bool:
        """Whether epochs are to come."""
        return self.failure is None and not self.training.is_done

    def guard(self, asking: Asking[T]) -> Asking[T | None]:
        """The same passes; where the training diverges it ends, and not the others with it."""
        try:
            return (yield from asking)
        except SettingsError as error:
            self.failure = str(error)
            return None

    def step(self, batch: FeatureBatch, val_batch: FeatureBatch | None) -> None:
        """The next batch, and a checkpoint where one is due."""
        with self.within():
            try:
                self.training.step(batch, val_batch if self.training.udl else None)
                self.keeper.after_batch()
            except SettingsError as error:
                self.failure = str(error)

    def save(self) -> None:
        """A checkpoint; not of a training that failed."""
        if self.failure is not None or self.keeper.folder is None:
            return
        with self.within():
            try:
                self.keeper.save()
            except SettingsError as error:
                self.failure = str(error)

    def forget(self) -> None:
        """Delete its checkpoint: the trained head is safe elsewhere."""
        if self.keeper.folder is not None:
            self.keeper.folder.remove()

    def describe_failure(self) -> str:
        """Who failed, and why."""
        return f"{self.name}, seed {self.training.recipe.seed}: {self.failure}"

    @property
    def status(self) -> Status:
        """How far it is."""
        training = self.training
        tally = training.tally
        num_epochs = training.how.num_epochs
        last = (training.history or [{}])[-1]
        cursor = training.cursor
        count = tally.num_clips
        ahead = cursor.epoch > training.epoch
        part = 1.0 if ahead else cursor.num_done / cursor.num_batches
        whole = self.finished or not num_epochs
        return Status(
            self.name,
            training.recipe.seed,
            min(training.epoch + 1, num_epochs),
            num_epochs,
            1.0 if whole else min((training.epoch + part) / num_epochs, 1.0),
            tally.loss / count if count else last.get("train_loss", float("nan")),
            tally.num_correct / count if count else last.get("train_accuracy", float("nan")),
            last.get("heldout_accuracy"),
            self.finished,
            self.failure,
        )


# ---- the pass ------------------------------------------------------------------------------------

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
        self.members = list(members)
        self.feed = feed
        self.device = device
        self.tell = tell
        self.on_finished = on_finished
        self.stop = stop
        for member in self.members:
            self._check_alike(member)

    def run(self) -> None:
        """Train all to their ends.

        Raises:
            TrainingStopped: A stop was asked for, or no time is left; all are saved.
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
        if self.stop is not None and any(member.is_going for member in self.members):
            self.stop.end_epoch()
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
        size = min((m.training.pass_size for m in members), default=EVALUATION_BATCH)
        make_passes_together(asking, self.feed, self.device, batch_size=size)

    def _leave_if_asked(self) -> None:
        if self.stop is None or not self.stop.requested:
            return
        going = [member for member in self.members if member.is_going]
        for member in going:
            member.save()
        saved = f"{len(going)} trainings saved; the same command goes on from there"
        if self.stop.budget.is_over:
            raise BudgetOver(f"no time for another epoch: {saved}")
        raise TrainingStopped(f"asked to stop: {saved}", self.stop.exit_status)

    def _check_alike(self, member: Member) -> None:
        first = self.members[0].training
        own = member.training
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
