"""One training in a pass that it shares with others: its randomness, checkpoint, clock and end.

Enters: an untrained head's maker, the common feed, options. Leaves: the head, trained as if alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import FeatureBatch, FeatureFeed
from dsts_pipeline.learn.ablation.randomness import OwnRandomness
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.passes import Asking
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.resume import CheckpointOptions, Keeper
from dsts_pipeline.learn.training import Training

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
        name: What it is called in messages; `options.seed` says which of that name.
        build: Makes the untrained head.

    Attributes:
        failure: Why it ended before its time; None if it did not.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        feed: FeatureFeed,
        options: TrainingOptions,
        processes: Processes,
        checkpoints: CheckpointOptions | None = None,
    ) -> None:
        self.name, self.finished = name, False
        self.failure: str | None = None
        self._randomness = OwnRandomness(processes.device)
        self._began = False
        with self.within():
            self.training = Training(build(), feed, options, processes)
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
        """The same wishes; where the training diverges it ends, and not the others with it."""
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
        return f"{self.name}, seed {self.training.options.seed}: {self.failure}"

    @property
    def status(self) -> Status:
        """How far it is."""
        training, tally = self.training, self.training.tally
        num_epochs, last = training.options.num_epochs, (training.history or [{}])[-1]
        cursor = training.cursor
        count = tally.num_clips
        ahead = cursor.epoch > training.epoch
        part = 1.0 if ahead else cursor.num_done / cursor.num_batches
        whole = self.finished or not num_epochs
        return Status(
            self.name,
            training.options.seed,
            min(training.epoch + 1, num_epochs),
            num_epochs,
            1.0 if whole else min((training.epoch + part) / num_epochs, 1.0),
            tally.loss / count if count else last.get("train_loss", float("nan")),
            tally.num_correct / count if count else last.get("train_accuracy", float("nan")),
            last.get("heldout_accuracy"),
            self.finished,
            self.failure,
        )
