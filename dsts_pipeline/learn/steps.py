"""One iteration of training: an ordinary step, or UDL's three.

Enters: an `Objective`, the optimisers of u and d, batches. Leaves: updated parameters and what the
pass over the training batch gave. A batch may be gone through in parts (gradient accumulation):
norms and gates then belong to a part, gradients to the whole. Where several processes train
together, a part is that part of all of them, and gradients are sums over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead, LayerNoise, LayerRecord
from dsts_pipeline.head.neurons import widen
from dsts_pipeline.head.routing import balance_loss
from dsts_pipeline.learn.optimizers import LossScale, Precision, ScheduledOptimizer, forward_context
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.udl import Method, meta_gradient_of_parts

# ---- ------------------------------------------------------------------------------------------
# Mixup on feature maps: every clip of a batch is blended with another one, and so is its label.
#
# `x = s x_i + (1 - s) x_j`, loss `s CE(., y_i) + (1 - s) CE(., y_j)`: cross-entropy with the soft
# label. s is drawn from Beta(alpha, alpha) per batch, and the larger of s and 1 - s is taken, so
# that a clip keeps the greater part of itself. Source: Zhang et al. 2018. Deviation: not in the
# paper. Choice: under UDL the training batch is mixed, the validation batch is left as it is.


@dataclass(frozen=True, repr=False)
class MixedBatch(FeatureBatch):
    """A batch of blended maps: `labels` weigh `share`, `partners [B]` the rest."""

    partners: Tensor
    share: float


def mix_batch(batch: FeatureBatch, *, alpha: float, seed: int) -> MixedBatch:
    """Blend the maps of `batch` among themselves.

    Args:
        alpha: > 0; the larger, the more even the blend.
        seed: Decides share and partners.
    """
    generator = np.random.default_rng(seed)
    share = float(generator.beta(alpha, alpha))
    share = max(share, 1.0 - share)
    partner = torch.from_numpy(generator.permutation(len(batch))).to(batch.maps.device)
    maps = share * batch.maps + (1.0 - share) * batch.maps[partner]
    return MixedBatch(maps, batch.labels, batch.rows, batch.labels[partner], share)


def split_batch(batch: FeatureBatch, size: int) -> list[FeatureBatch]:
    """Consecutive parts of at most `size` clips."""
    columns = zip(
        batch.maps.split(size), batch.labels.split(size), batch.rows.split(size), strict=True
    )
    if not isinstance(batch, MixedBatch):
        return [FeatureBatch(*column) for column in columns]
    partners = batch.partners.split(size)
    return [
        MixedBatch(*column, partner, batch.share)
        for column, partner in zip(columns, partners, strict=True)
    ]


# ---- The parts of a model that trains: its DSTS head, and what UDL calls upstream and downstream.
#
# Enters: a head on cached maps, or a model with a backbone in front whose `head` is one. Leaves:
# the head, and parameters by the model's own names.


def head_of(model: nn.Module) -> nn.Module:
    """The head of a model that has a backbone in front; any other model is its own head."""
    inner = getattr(model, "head", None)
    return inner if isinstance(inner, nn.Module) else model


def dsts_of(model: nn.Module) -> DSTSHead | None:
    """The DSTS head in `model`, if there is one."""
    head = head_of(model)
    return head if isinstance(head, DSTSHead) else None


def upstream_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """u: scoring kernels and gate logits, by their names in `model` (paper 3.3)."""
    head = dsts_of(model)
    upstream = set() if head is None else {id(p) for p in head.upstream_parameters().values()}
    return {name: p for name, p in model.named_parameters() if id(p) in upstream}


def downstream_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """d: everything else that trains, by name in `model`; in end-to-end training the backbone's
    parameters too."""
    upstream = upstream_of(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in upstream
    }


# ---- The loss of a head on a batch, with its randomness fixed beforehand. -----------------------
#
# Enters: a head, a `FeatureBatch` and the noise of the pass. Leaves: cross-entropy, optionally with
# the load-balancing loss, as a function of any parameter values.


@dataclass(frozen=True)
class Draw:
    """A batch together with the noise of its pass (None for heads that draw none)."""

    batch: FeatureBatch
    noise: Sequence[LayerNoise] | None

    def with_noise_scaled(self, factor: float) -> Self:
        """The same with its noise times `factor`."""
        if self.noise is None or factor == 1.0:
            return self
        return replace(self, noise=tuple(one.scaled(factor) for one in self.noise))


@dataclass(frozen=True)
class Objective:
    """Loss of `head`: cross-entropy plus `balance_weight` times the load-balancing loss.

    `head` may be a model with a backbone in front (see `parts`); a batch's maps are then frames.

    Called with values of u and d, as `meta_gradient` does, it may be differentiated twice;
    `first_order_loss` is the same loss, cheaper, for one derivative.

    Args:
        label_smoothing: In [0, 1).
        balance_weight: 0 is the paper.
        precision: Type that the forward pass runs in.
        processes: Those that train together: noise, norms and the load-balancing loss are those
            of their joined batch, cross-entropy is this one's.
    """

    head: nn.Module
    label_smoothing: float = 0.0
    balance_weight: float = 0.0
    precision: Precision = "float32"
    processes: Processes = ALONE

    def draw(self, batch: FeatureBatch, generator: torch.Generator | None = None) -> Draw:
        """Fix the randomness of a pass over `batch`.

        Every process draws the noise of the joined batch, from equal generators, and takes that
        of its own samples; gates' noise is common.
        """
        head = dsts_of(self.head)
        if head is None:
            return Draw(batch, None)
        size = len(batch)
        noise = head.draw_noise(size * self.processes.world_size, generator)
        if self.processes.world_size > 1:
            start = size * self.processes.rank
            noise = tuple(n._replace(gumbel=n.gumbel[start : start + size]) for n in noise)
        return Draw(batch, noise)

    def __call__(
        self, upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
    ) -> Tensor:
        """The loss at these parameter values; running statistics stay as they are."""
        values = {**upstream, **downstream}
        return self.evaluate(draw, values, update_statistics=False, first_order=False)[0]

    def first_order_loss(
        self, upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
    ) -> Tensor:
        """The same loss, whose gradient is not to be differentiated again."""
        return self.evaluate(draw, {**upstream, **downstream}, update_statistics=False)[0]

    def evaluate(
        self,
        draw: Draw,
        parameters: dict[str, Tensor] | None = None,
        *,
        update_statistics: bool,
        first_order: bool = True,
    ) -> tuple[Tensor, Tensor, tuple[LayerRecord, ...]]:
        """Loss, logits `[B, K]` and records, at `parameters` or the head's own values."""
        is_dsts = dsts_of(self.head) is not None
        options: dict[str, Any] = {}
        if is_dsts:
            options = {
                "noise": draw.noise,
                "update_statistics": update_statistics,
                "first_order": first_order,
                "with_records": True,
            }
        options |= self.options_of(draw)
        batch = draw.batch
        with forward_context(self.precision, batch.maps.device):
            if parameters is None:
                output = self.head(batch.maps, **options)
            else:
                output = functional_call(self.head, parameters, (batch.maps,), options)
        logits, records = output if is_dsts else (output, ())
        logits = widen(logits)
        loss = self._cross_entropy(logits, batch.labels)
        if isinstance(batch, MixedBatch):
            rest = 1.0 - batch.share
            loss = batch.share * loss + rest * self._cross_entropy(logits, batch.partners)
        if self.balance_weight:
            for record in records:
                if record.choice is not None:
                    loss = loss + self.balance_weight * balance_loss(
                        record.choice, record.impulses, self.processes.sum_across
                    )
        return loss, logits, records

    def options_of(self, draw: Draw) -> dict[str, Any]:
        """What the model is told beside the head's options."""
        return {}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


# ---- One iteration of training: an ordinary step, or UDL's three. -------------------------------
#
# Enters: an `Objective`, the optimisers of u and d, batches. Leaves: updated parameters and what
# the pass over the training batch gave. A batch may be gone through in parts (gradient
# accumulation): norms and gates then belong to a part, gradients to the whole. Where several
# processes train together, a part is that part of all of them, and gradients are sums over
# processes.

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
