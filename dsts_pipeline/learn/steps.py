"""One iteration of training: an ordinary step, or UDL's three.

Enters: an `Objective`, the optimisers of u and d, batches. Leaves: updated parameters and what the
pass over the training batch gave. A batch may be gone through in parts (gradient accumulation):
norms and gates then belong to a part, gradients to the whole. Where several processes train
together, a part is that part of all of them, and gradients are sums over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import LayerRecord
from dsts_pipeline.learn.mixup import split_batch
from dsts_pipeline.learn.objective import Draw, Objective
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.parts import downstream_of, upstream_of
from dsts_pipeline.learn.precision import LossScale
from dsts_pipeline.learn.products import Method
from dsts_pipeline.learn.udl import meta_gradient_of_parts

Part = tuple[Draw, float]
"""A part of a batch with its noise, and its weight in the mean."""


@dataclass(frozen=True)
class StepResult:
    """Loss, logits `[B, K]` and records (one list per part) of the pass that updated d.

    The loss is that of all processes' samples, the rest is this process's.
    """

    loss: float
    logits: Tensor
    records: list[tuple[LayerRecord, ...]]


@dataclass
class Stepper:
    """Makes the iterations of a training.

    Args:
        objective: The loss.
        upstream, downstream: Optimisers of u and d.
        scale: The loss scale.
        part_size: Samples gone through at a time; None for the whole batch.
        method: How UDL's product is computed.
        redraw: Whether UDL's step 3 draws new noise.
        generator: Randomness of the noise.
        noise_scale: Factor on the noise of the steps to come.
    """

    objective: Objective
    upstream: ScheduledOptimizer
    downstream: ScheduledOptimizer
    scale: LossScale
    part_size: int | None = None
    method: Method = "exact"
    redraw: bool = False
    generator: torch.Generator | None = None
    noise_scale: float = 1.0

    def plain_step(self, batch: FeatureBatch) -> StepResult:
        """Update u and d by the gradient of one loss (the ablation without UDL, Table 5)."""
        both = self.upstream.parameters + self.downstream.parameters
        gradients, result = self._gradients(self.objective, self._parts(batch), both)
        if self.scale.accepts(gradients):
            self.upstream.step(gradients[: len(self.upstream.parameters)])
            self.downstream.step(gradients[len(self.upstream.parameters) :])
        return result

    def udl_step(
        self, train_batch: FeatureBatch, val_batch: FeatureBatch, *, inner_lr: float
    ) -> StepResult:
        """UDL's three steps (Eq. 9-11).

        The same noise serves step 1 and its derivative. Choice: step 3 uses it again, so that the
        update which was simulated is the one that is made, but for u'; `redraw` draws anew.

        Args:
            inner_lr: alpha of the simulated step.

        Raises:
            ValueError: The batches share a sample.
        """
        check_disjoint(train_batch, val_batch)
        train, val = self._parts(train_batch), self._parts(val_batch)
        self._meta_update(self.objective, train, val, inner_lr)
        if self.redraw:
            train = self._parts(train_batch)
        return self._downstream_update(self.objective, train)

    def _meta_update(
        self, objective: Objective, train: Sequence[Part], val: Sequence[Part], inner_lr: float
    ) -> None:
        """Steps 1 and 2: update u of the objective's model."""
        model = objective.head
        meta = meta_gradient_of_parts(
            objective,
            upstream_of(model),
            downstream_of(model),
            train,
            val,
            inner_lr,
            method=self.method,
            first_order_loss_fn=objective.first_order_loss,
            loss_scale=self.scale.value,
            sum_across=objective.processes.sum_named,
        )
        if self.scale.accepts(meta.values()):
            self.upstream.step(list(meta.values()))

    def _downstream_update(self, objective: Objective, train: Sequence[Part]) -> StepResult:
        """Step 3: update d at the new u."""
        gradients, result = self._gradients(objective, train, self.downstream.parameters)
        if self.scale.accepts(gradients):
            self.downstream.step(gradients)
        return result

    def _parts(self, batch: FeatureBatch) -> list[Part]:
        """The batch's parts with their noise and weight in the mean."""
        parts = split_batch(batch, self.part_size or len(batch))
        num_samples = len(batch) * self.objective.processes.world_size
        return [(self._draw(part), len(part) / num_samples) for part in parts]

    def _draw(self, part: FeatureBatch) -> Draw:
        return self.objective.draw(part, self.generator).with_noise_scaled(self.noise_scale)

    def _gradients(
        self, objective: Objective, parts: Sequence[Part], parameters: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], StepResult]:
        """Gradients of the weighted loss by `parameters`; running statistics move."""
        total: list[Tensor | None] = [None] * len(parameters)
        loss_sum, logits, records = 0.0, [], []
        for draw, weight in parts:
            loss, part_logits, part_records = objective.evaluate(draw, update_statistics=True)
            factor = weight * self.scale.value
            found = torch.autograd.grad(loss * factor, parameters, allow_unused=True)
            total = [_add(old, new) for old, new in zip(total, found, strict=True)]
            loss_sum += weight * loss.item()
            logits.append(part_logits.detach())
            records.append(part_records)
        processes = objective.processes
        total = processes.sum_gradients(total)
        gradients = [None if g is None else g / self.scale.value for g in total]
        loss_sum = float(processes.sum_numbers(torch.tensor(loss_sum, dtype=torch.float64)))
        return gradients, StepResult(loss_sum, torch.cat(logits), records)


def check_disjoint(train_batch: FeatureBatch, val_batch: FeatureBatch) -> None:
    """Refuse a training and a validation batch that share a row.

    Raises:
        ValueError: They share a row; UDL needs unseen samples for its meta-update.
    """
    shared = sorted(set(train_batch.rows.tolist()) & set(val_batch.rows.tolist()))
    if shared:
        raise ValueError(
            f"training and validation batch share {len(shared)} samples (row {shared[0]} first); "
            "UDL needs disjoint batches: take them from feed.udl_pairs"
        )


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
