"""One training: what it holds, and how it goes through an epoch.

Enters: a head, a `FeatureFeed` over the training split, options, processes. Leaves: the head,
trained in place, and a history of plain dictionaries. `loop` drives it, `resume` saves it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.progress import Track
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.training_clips import hold_out
from dsts_pipeline.feed import ClipFeed, EpochSampler, FeatureBatch
from dsts_pipeline.feed.cursor import SamplerCursor
from dsts_pipeline.head.inspection import summarize_head
from dsts_pipeline.head.recalibration import recalibration_passes
from dsts_pipeline.learn.average import WeightAverage
from dsts_pipeline.learn.divergence import Watch
from dsts_pipeline.learn.heldout import Evaluation, evaluation_pass
from dsts_pipeline.learn.mixup import mix_batch
from dsts_pipeline.learn.objective import Objective
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.parts import downstream_of, dsts_of, upstream_of
from dsts_pipeline.learn.passes import Asking, MapPass, make_passes
from dsts_pipeline.learn.precision import LossScale
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.steps import Stepper, StepResult
from dsts_pipeline.learn.tally import Tally

AfterBatch = Callable[[], None]
Pair = tuple[FeatureBatch, FeatureBatch | None]
T = TypeVar("T")


@dataclasses.dataclass
class Best:
    """The best values on the held-out clips so far; `epoch` -1 is the untrained head."""

    loss: float
    epoch: int
    values: dict[str, Tensor]


class Training:
    """What one `train_head` call holds between batches.

    Attributes:
        epoch: The one in work or to come; `tally` is of it.
        cursor: The place in the sampler's batches, ahead of `epoch` where all its batches are done.
        history: An entry per finished epoch.
    """

    def __init__(
        self, head: nn.Module, feed: ClipFeed, options: TrainingOptions, processes: Processes
    ) -> None:
        self.head, self.feed, self.options, self.processes = head, feed, options, processes
        processes.adopt(head)
        self.rows, self.heldout = hold_out(
            feed.rows,
            feed.labels,
            feed.groups,
            fraction=options.heldout_fraction,
            seed=options.stream_seed,
        )
        self.dsts = dsts_of(head)
        self.udl = options.udl and bool(upstream_of(head))
        self.stepper = self._stepper()
        self.sampler = self._sampler()
        self.cursor = SamplerCursor(self.sampler, paired=self.udl)
        self.average = None if options.ema_decay is None else WeightAverage(head, options.ema_decay)
        self.watch = Watch(feed, options)
        self.best: Best | None = None
        self.epoch, self.num_steps = 0, 0
        self.history: list[dict[str, Any]] = []
        self.tally = Tally(head, processes)

    def start(self) -> Asking[None]:
        """Make the untrained head the first candidate."""
        if len(self.heldout):
            found = yield from self._evaluate()
            self._consider(found, -1)

    def make_passes(self, asking: Asking[T]) -> T:
        """Make the passes that `start`, `end_epoch` or `finish` asks for."""
        return make_passes(asking, self.feed, self.processes.device)

    @property
    def ends_early(self) -> bool:
        """Whether early stopping has had enough epochs without a best one."""
        patience = self.options.early_stopping_epochs
        last = self.history[-patience:] if patience else []
        return bool(last) and len(last) == patience and not any(entry["best"] for entry in last)

    @property
    def is_done(self) -> bool:
        """Whether no epoch is to come."""
        return self.epoch >= self.options.num_epochs or self.ends_early

    def run_epoch(self, progress: Track, after_batch: AfterBatch) -> dict[str, Any]:
        """Train to the end of the epoch, evaluate, and describe both."""
        start = time.perf_counter() - self.tally.seconds
        self.begin_epoch()
        for batch, val_batch in self._batches():
            self.step(batch, val_batch)
            self.tally.seconds = time.perf_counter() - start
            progress.advance(len(batch) * self.processes.world_size, self.tally.describe())
            after_batch()
        entry = self.make_passes(self.end_epoch())
        entry["seconds"] = time.perf_counter() - start
        return entry

    def begin_epoch(self) -> None:
        """Before the epoch's first batch, and before the first one after a stop.

        The noise of an epoch starts from a seed of its own; in mid-epoch it goes on.
        """
        self.head.train()
        at_start = self.cursor.epoch == self.epoch and self.cursor.num_done == 0
        if at_start and self.stepper.generator is not None:
            seed = derive_seed(self.options.seed, "noise", self.epoch)
            self.stepper.generator.manual_seed(seed)

    def remaining(self) -> list[Any]:
        """Rows of the batches, or of UDL's pairs, of the epoch that are not done."""
        return self.cursor.remaining() if self.cursor.epoch == self.epoch else []

    def step(self, batch: FeatureBatch, val_batch: FeatureBatch | None) -> None:
        """Learn from the next batch, with UDL's validation batch where it takes one."""
        position, num_batches = self.cursor.num_done, self.cursor.num_batches
        done = (self.epoch + position / num_batches) / self.options.num_epochs
        result = self._update(batch, val_batch, done)
        self.num_steps += 1
        self.watch.check_loss(result.loss, self, position, batch)
        self.tally.add(result, batch)
        self.cursor.advance()

    def end_epoch(self) -> Asking[dict[str, Any]]:
        """After the epoch's last batch: evaluate, describe, go on to the next epoch."""
        self.watch.check_weights(self)
        entry = yield from self._describe_epoch()
        entry["seconds"] = self.tally.seconds
        self.history.append(entry)
        self.epoch, self.tally = self.epoch + 1, Tally(self.head, self.processes)
        return entry

    def finish(self) -> Asking[None]:
        """Put the best values back, with statistics of more clips, in evaluation mode."""
        if self.best is not None:
            self.head.load_state_dict(self.best.values)
        elif self.average is not None:
            self.average.apply()
        if self.options.num_epochs:
            yield from self._recalibrate(self.rows[: self.options.recompute_clips_at_end])
        self.head.eval()

    def _describe_epoch(self) -> Asking[dict[str, Any]]:
        count = self.tally.num_clips
        entry: dict[str, Any] = {
            "epoch": self.epoch,
            "train_loss": self.tally.loss / count,
            "train_accuracy": self.tally.num_correct / count,
        }
        averaged: AbstractContextManager[None] = nullcontext()
        if self.average is not None:
            averaged = self.average.in_place()
        with averaged:
            yield from self._recalibrate(self.rows[: self.options.recompute_clips])
            routing = self.tally.routing
            if len(self.heldout):
                found = yield from self._evaluate()
                routing = found.routing
                entry |= {"heldout_loss": found.loss, "heldout_accuracy": found.accuracy}
                entry["best"] = self._consider(found, self.epoch)
            if self.dsts is not None:
                entry["layers"] = summarize_head(self.dsts, routing)
        return entry

    def _batches(self) -> Iterator[Pair]:
        """The epoch's remaining batches, each with UDL's validation batch or None."""
        device, left = self.processes.device, self.remaining()
        if self.udl:
            return ((a.to(device), b.to(device)) for a, b in self.feed.pairs(left))
        return ((batch.to(device), None) for batch in self.feed.batches(left))

    def _update(
        self, batch: FeatureBatch, val_batch: FeatureBatch | None, progress: float
    ) -> StepResult:
        factor = self.stepper.downstream.set_progress(progress)
        self.stepper.upstream.set_progress(progress)
        self.stepper.noise_scale = self.options.noise_scale_at(progress)
        if self.options.mixup_alpha:
            place = self.num_steps, self.processes.rank
            seed = derive_seed(self.options.seed, "mixup", *place)
            batch = mix_batch(batch, alpha=self.options.mixup_alpha, seed=seed)
        if val_batch is None:
            result = self.stepper.plain_step(batch)
        else:
            alpha = self.options.inner_learning_rate or factor * self.options.learning_rate
            result = self.stepper.udl_step(batch, val_batch, inner_lr=alpha)
        if self.average is not None:
            self.average.update()
        return result

    def _evaluate(self) -> Asking[Evaluation]:
        found = yield from evaluation_pass(self.head, self.heldout, self.processes)
        self.watch.check_evaluation(found.loss, self)
        return found

    def _consider(self, evaluation: Evaluation, epoch: int) -> bool:
        """Keep the head's values if they are the best so far."""
        if self.best is not None and not evaluation.loss < self.best.loss:
            return False
        values = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.best = Best(evaluation.loss, epoch, values)
        return True

    def _recalibrate(self, rows: np.ndarray) -> Asking[None]:
        """Choice: every process goes through all of `rows` itself."""
        if self.options.recompute_statistics and self.dsts is not None:
            for consume in recalibration_passes(self.dsts):
                yield MapPass(rows, partial(_give_maps, consume))

    def _stepper(self) -> Stepper:
        options = self.options
        return Stepper(
            Objective(
                self.head,
                options.label_smoothing,
                options.balance_weight,
                options.precision,
                self.processes,
            ),
            options.optimizer_of(upstream_of(self.head)),
            options.optimizer_of(downstream_of(self.head)),
            LossScale.for_precision(options.precision),
            part_size=options.part_size,
            method=options.udl_method,
            redraw=options.redraw_noise,
            generator=torch.Generator(self.processes.device),
        )

    def _sampler(self) -> EpochSampler:
        options, kept = self.options, np.isin(self.feed.rows, self.rows)
        return EpochSampler(
            self.rows,
            options.batch_size,
            options.stream_seed,
            order=options.order,
            class_balanced=options.class_balanced,
            groups=self.feed.groups[kept],
            labels=self.feed.labels[kept],
            shards=self.feed.shards[kept] if options.order == "shard" else None,
            window=options.shard_window,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )


def _give_maps(consume: Callable[[Tensor], None], batch: FeatureBatch) -> None:
    consume(batch.maps)
