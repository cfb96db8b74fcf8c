"""The training of a head on cached maps, epoch by epoch.

Enters: a head, a `FeatureFeed` over the training split, options. Leaves: the head, trained in
place and in evaluation mode, and a history of plain dictionaries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.progress import Track, track
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.feed import EpochSampler, FeatureBatch, FeatureFeed
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.inspection import summarize_head
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.learn.heldout import Evaluation, evaluate_rows, hold_out, map_passes
from dsts_pipeline.learn.objective import Objective
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.precision import LossScale
from dsts_pipeline.learn.steps import Stepper, StepResult

EVALUATION_BATCH = 128
OnEpoch = Callable[[dict[str, Any]], None]
Pair = tuple[FeatureBatch, FeatureBatch | None]


def train_head(
    head: nn.Module,
    feed: FeatureFeed,
    *,
    on_epoch: OnEpoch | None = None,
    title: str = "train",
    **options: Any,
) -> list[dict[str, Any]]:
    """Train `head` on the clips of `feed`; with a held-out part, keep the best epoch's values.

    The untrained head takes part in that choice, so a head that starts at its baseline does not
    end below it on the held-out clips.

    Args:
        feed: All training rows; held-out clips are taken from them.
        on_epoch: Called with each entry of the history.
        title: What the progress bar says.
        options: Those of `TrainingOptions`.

    Returns:
        Per epoch: epoch, train_loss, train_accuracy, heldout_loss and heldout_accuracy (where
        clips are held out), best (whether it is the best so far), seconds, learning_rate, and for
        a `DSTSHead` layers (see `inspection.summarize_layer`).

    Raises:
        SettingsError: Too few clips for UDL's pairs of batches, or the loss is not finite.
    """
    training = _Training(head, feed, TrainingOptions(**options))
    history: list[dict[str, Any]] = []
    training.remember_start()
    total = training.options.num_epochs * training.sampler.num_clips
    with track(title, total) as progress:
        for epoch in range(training.options.num_epochs):
            history.append(training.run_epoch(epoch, progress))
            if on_epoch is not None:
                on_epoch(history[-1])
    training.finish()
    return history


class _Training:
    """What one `train_head` call holds between epochs."""

    def __init__(self, head: nn.Module, feed: FeatureFeed, options: TrainingOptions) -> None:
        self.head, self.feed, self.options = head, feed, options
        self.rows, self.heldout = hold_out(
            feed.rows,
            feed.labels,
            feed.groups,
            fraction=options.heldout_fraction,
            seed=options.seed,
        )
        upstream = head.upstream_parameters() if isinstance(head, DSTSHead) else {}
        downstream = {n: p for n, p in head.named_parameters() if n not in upstream}
        self.udl = options.udl and bool(upstream)
        self.stepper = Stepper(
            Objective(head, options.label_smoothing, options.balance_weight, options.precision),
            self._optimizer(upstream),
            self._optimizer(downstream),
            LossScale.for_precision(options.precision),
            part_size=options.part_size,
            method=options.udl_method,
            redraw=options.redraw_noise,
        )
        self.sampler = self._sampler()
        self.best: tuple[float, dict[str, Tensor]] | None = None

    def remember_start(self) -> None:
        """Make the untrained head the first candidate."""
        if len(self.heldout):
            self._consider(self._evaluate())

    def run_epoch(self, epoch: int, progress: Track) -> dict[str, Any]:
        """Train for one epoch, evaluate, and describe both."""
        start = time.perf_counter()
        seed = derive_seed(self.options.seed, "noise", epoch)
        self.stepper.generator = torch.Generator(_device_of(self.head)).manual_seed(seed)
        self.head.train()
        num_clips, loss, correct, choices = 0, 0.0, 0, []
        pairs, num_pairs = self._pairs(epoch)
        for position, (batch, val_batch) in enumerate(pairs):
            done = (epoch + position / num_pairs) / self.options.num_epochs
            result = self._step(batch, val_batch, done)
            self._check_finite(result.loss, epoch)
            num_clips += len(batch)
            loss += result.loss * len(batch)
            correct += int((result.logits.argmax(dim=1) == batch.labels).sum())
            choices += [[record.choice for record in part] for part in result.records]
            progress.advance(len(batch), f"loss {loss / num_clips:.3f}")
        entry: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": loss / num_clips,
            "train_accuracy": correct / num_clips,
        }
        self._recalibrate(self.rows[: self.options.recompute_clips])
        routing = _join(choices)
        if len(self.heldout):
            evaluation = self._evaluate()
            routing = evaluation.routing
            entry |= {"heldout_loss": evaluation.loss, "heldout_accuracy": evaluation.accuracy}
            entry["best"] = self._consider(evaluation)
        if isinstance(self.head, DSTSHead):
            entry["layers"] = summarize_head(self.head, routing)
        entry["seconds"] = time.perf_counter() - start
        return entry

    def finish(self) -> None:
        """Put the best values back, with statistics of all clips, in evaluation mode."""
        if self.best is not None:
            self.head.load_state_dict(self.best[1])
        if self.options.num_epochs:
            self._recalibrate(self.rows)
        self.head.eval()

    def _pairs(self, epoch: int) -> tuple[Iterator[Pair], int]:
        """Training batches of an epoch, each with UDL's validation batch or None."""
        if self.udl:
            pairs = self.sampler.pairs(epoch)
            return iter(self.feed.pairs(pairs)), len(pairs)
        order = self.sampler.batches(epoch)
        return ((batch, None) for batch in self.feed.batches(order)), len(order)

    def _step(
        self, batch: FeatureBatch, val_batch: FeatureBatch | None, progress: float
    ) -> StepResult:
        factor = self.stepper.downstream.set_progress(progress)
        self.stepper.upstream.set_progress(progress)
        if val_batch is None:
            return self.stepper.plain_step(batch)
        alpha = self.options.inner_learning_rate or factor * self.options.learning_rate
        return self.stepper.udl_step(batch, val_batch, inner_lr=alpha)

    def _check_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise SettingsError(
                f"training diverged: the loss is {loss} in epoch {epoch}; lower "
                f"train.learning_rate (now {self.options.learning_rate:g}) or set train.clip_norm"
            )

    def _evaluate(self) -> Evaluation:
        return evaluate_rows(self.head, self.feed, self.heldout, batch_size=EVALUATION_BATCH)

    def _consider(self, evaluation: Evaluation) -> bool:
        """Keep the head's values if they are the best so far."""
        if self.best is not None and not evaluation.loss < self.best[0]:
            return False
        values = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.best = (evaluation.loss, values)
        return True

    def _recalibrate(self, rows: np.ndarray) -> None:
        if self.options.recompute_statistics and isinstance(self.head, DSTSHead):
            recalibrate(self.head, map_passes(self.feed, rows, batch_size=EVALUATION_BATCH))

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
        )

    def _optimizer(self, parameters: dict[str, nn.Parameter]) -> ScheduledOptimizer:
        options = self.options
        return ScheduledOptimizer(
            parameters,
            {name: options.learning_rate_of(name) for name in parameters},
            name=options.optimizer,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            schedule=options.schedule,
            warmup_fraction=options.warmup_fraction,
            clip_norm=options.clip_norm,
        )


def _device_of(head: nn.Module) -> torch.device:
    return next(head.parameters()).device


def _join(choices: list[list[Tensor | None]]) -> Tensor | None:
    """Choices per batch and layer as `[n, L]`; None where nothing is routed."""
    if not choices or not choices[0] or choices[0][0] is None:
        return None
    return torch.cat([torch.stack([c for c in batch if c is not None], 1) for batch in choices])
