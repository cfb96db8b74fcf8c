"""One training: what it holds, and how it goes through an epoch.

Enters: a head, a `FeatureFeed` over the training split, options, processes. Leaves: the head,
trained in place, and a history of plain dictionaries. `loop` drives it, `resume` saves it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.progress import Track
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.feed import EpochSampler, FeatureBatch, FeatureFeed
from dsts_pipeline.feed.cursor import SamplerCursor
from dsts_pipeline.head.inspection import summarize_head
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.learn.average import WeightAverage
from dsts_pipeline.learn.divergence import Watch
from dsts_pipeline.learn.heldout import Evaluation, evaluate_rows, hold_out, map_passes
from dsts_pipeline.learn.mixup import mix_batch
from dsts_pipeline.learn.objective import Objective
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.parts import downstream_of, dsts_of, upstream_of
from dsts_pipeline.learn.precision import LossScale
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.steps import Stepper, StepResult
from dsts_pipeline.learn.tally import Tally

EVALUATION_BATCH = 128
AfterBatch = Callable[[], None]
Pair = tuple[FeatureBatch, FeatureBatch | None]


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
        self, head: nn.Module, feed: FeatureFeed, options: TrainingOptions, processes: Processes
    ) -> None:
        self.head, self.feed, self.options, self.processes = head, feed, options, processes
        processes.adopt(head)
        self.rows, self.heldout = hold_out(
            feed.rows,
            feed.labels,
            feed.groups,
            fraction=options.heldout_fraction,
            seed=options.seed,
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

    def start(self) -> None:
        """Make the untrained head the first candidate."""
        if len(self.heldout):
            found = self._evaluate()
            self.watch.check_evaluation(found.loss, self)
            self._consider(found, -1)

    @property
    def ends_early(self) -> bool:
        """Whether early stopping has had enough epochs without a best one."""
        patience = self.options.early_stopping_epochs
        last = self.history[-patience:] if patience else []
        return bool(last) and len(last) == patience and not any(entry["best"] for entry in last)

    def run_epoch(self, progress: Track, after_batch: AfterBatch) -> dict[str, Any]:
        """Train to the end of the epoch, evaluate, and describe both."""
        start = time.perf_counter() - self.tally.seconds
        self.head.train()
        batches, num_batches = self._batches()
        for position, (batch, val_batch) in enumerate(batches, num_batches - self._num_left()):
            done = (self.epoch + position / num_batches) / self.options.num_epochs
            result = self._step(batch, val_batch, done)
            self.num_steps += 1
            self.watch.check_loss(result.loss, self, position, batch)
            self.tally.add(result, batch)
            self.cursor.advance()
            self.tally.seconds = time.perf_counter() - start
            progress.advance(len(batch) * self.processes.world_size, self.tally.describe())
            after_batch()
        self.watch.check_weights(self)
        entry = self._finish_epoch()
        entry["seconds"] = time.perf_counter() - start
        self.history.append(entry)
        self.epoch, self.tally = self.epoch + 1, Tally(self.head, self.processes)
        return entry

    def finish(self) -> None:
        """Put the best values back, with statistics of all clips, in evaluation mode."""
        if self.best is not None:
            self.head.load_state_dict(self.best.values)
        elif self.average is not None:
            self.average.apply()
        if self.options.num_epochs:
            self._recalibrate(self.rows)
        self.head.eval()

    def _finish_epoch(self) -> dict[str, Any]:
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
            self._recalibrate(self.rows[: self.options.recompute_clips])
            routing = self.tally.routing
            if len(self.heldout):
                found = self._evaluate()
                self.watch.check_evaluation(found.loss, self)
                routing = found.routing
                entry |= {"heldout_loss": found.loss, "heldout_accuracy": found.accuracy}
                entry["best"] = self._consider(found, self.epoch)
            if self.dsts is not None:
                entry["layers"] = summarize_head(self.dsts, routing)
        return entry

    def _num_left(self) -> int:
        """Batches of the epoch that are not done."""
        return len(self.cursor.remaining()) if self.cursor.epoch == self.epoch else 0

    def _batches(self) -> tuple[Iterator[Pair], int]:
        """The epoch's remaining batches, each with UDL's validation batch or None; how many in all.

        The noise of an epoch starts from a seed of its own; in mid-epoch it goes on.
        """
        left = self.cursor.remaining() if self.cursor.epoch == self.epoch else []
        done = self.cursor.num_done if left else 0
        if left and not done and self.stepper.generator is not None:
            seed = derive_seed(self.options.seed, "noise", self.epoch)
            self.stepper.generator.manual_seed(seed)
        device = self.processes.device
        if self.udl:
            pairs = self.feed.pairs(left)
            return ((a.to(device), b.to(device)) for a, b in pairs), len(left) + done
        return ((batch.to(device), None) for batch in self.feed.batches(left)), len(left) + done

    def _step(
        self, batch: FeatureBatch, val_batch: FeatureBatch | None, progress: float
    ) -> StepResult:
        factor = self.stepper.downstream.set_progress(progress)
        self.stepper.upstream.set_progress(progress)
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

    def _evaluate(self) -> Evaluation:
        return evaluate_rows(
            self.head,
            self.feed,
            self.heldout,
            batch_size=EVALUATION_BATCH,
            processes=self.processes,
        )

    def _consider(self, evaluation: Evaluation, epoch: int) -> bool:
        """Keep the head's values if they are the best so far."""
        if self.best is not None and not evaluation.loss < self.best.loss:
            return False
        values = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.best = Best(evaluation.loss, epoch, values)
        return True

    def _recalibrate(self, rows: np.ndarray) -> None:
        """Choice: every process goes through all of `rows` itself."""
        if self.options.recompute_statistics and self.dsts is not None:
            passes = map_passes(
                self.feed, rows, batch_size=EVALUATION_BATCH, device=self.processes.device
            )
            recalibrate(self.dsts, passes)

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
            options.seed,
            order=options.order,
            class_balanced=options.class_balanced,
            groups=self.feed.groups[kept],
            labels=self.feed.labels[kept],
            shards=self.feed.shards[kept] if options.order == "shard" else None,
            window=options.shard_window,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )
