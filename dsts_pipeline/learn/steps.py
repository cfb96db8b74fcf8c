"""One iteration of training: an ordinary step, or UDL's three (paper 3.3, Eq. 9-11).

Enters: an objective, the optimisers of u and d, batches. Leaves: updated parameters and what the
pass over the training batch gave. `udl_step` serves the training of heads on maps, of backbone and
head together, and mmaction2's loop. A batch may be gone through in parts (gradient accumulation):
norms and gates then belong to a part, gradients to the whole. Where several processes train
together, a part is that part of all of them, and gradients are sums over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.base.settings import LearningSettings, TrainSettings, UdlSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead, HeadNoise, LayerRecord, ReadoutHead
from dsts_pipeline.head.neurons import widen
from dsts_pipeline.head.routing import balance_loss
from dsts_pipeline.learn.graphs import IterationGraphs
from dsts_pipeline.learn.optimizers import (
    LossScale,
    ScheduledOptimizer,
    forward_context,
    products_in,
)
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.udl import meta_gradient_of_parts

# ---- the loss ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """A batch together with all that is random in a pass over it.

    Attributes:
        noise: The head's, as its `draw_noise` gives it; None for heads that draw none.
        seed: Of a backbone's random numbers (dropout); None where it has none.
        features: What the head gets of the batch where that is computed beforehand; None: in every
            pass.
    """

    batch: Any
    noise: HeadNoise | None
    seed: int | None = None
    features: Any = None

    def with_noise_scaled(self, factor: float) -> Self:
        """The same with its noise times `factor`."""
        if self.noise is None or factor == 1.0:
            return self
        return replace(self, noise=tuple(one.scaled(factor) for one in self.noise))


@dataclass(frozen=True)
class Objective:
    """Loss of `head`: its own (cross-entropy) plus `balance_weight` times the load-balancing loss.

    `head` may be a model with a backbone in front; a batch's maps are then frames.

    Called with values of u and d, as `meta_gradient` does, it may be differentiated twice, the
    second time by u alone;
    `first_order_loss` is the same loss, cheaper, for one derivative.

    Args:
        how: Label smoothing, weight of the load-balancing loss, precision.
        processes: Those that train together: noise, norms and the load-balancing loss are those
            of their joined batch, the head's loss is this one's.
    """

    head: nn.Module
    how: LearningSettings = field(default_factory=TrainSettings)
    processes: Processes = ALONE

    def draw(self, batch: FeatureBatch, generator: torch.Generator | None = None) -> Draw:
        """Fix the randomness of a pass over `batch`.

        Every process draws the noise of the joined batch, from equal generators, and takes that
        of its own samples; gates' noise is common.
        """
        head = dsts_of(self.head) or self.head
        if not isinstance(head, ReadoutHead):
            return Draw(batch, None)
        size = len(batch)
        noise = head.draw_noise(size * self.processes.world_size, generator)
        if self.processes.world_size > 1:
            start = size * self.processes.rank
            noise = tuple(one.of_samples(start, start + size) for one in noise)
        return Draw(batch, noise)

    def simulated(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """u, and what of d UDL's simulated step moves."""
        return upstream_of(self.head), downstream_of(self.head)

    def with_features(self, draw: Draw, *, of_training: bool, with_graph: bool) -> Draw:
        """Here nothing is computed beforehand."""
        return draw

    def constant(self, draw: Draw) -> Draw:
        """The draw with its features cut from the graph that made them."""
        return draw

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
    ) -> tuple[Tensor, Answer]:
        """The loss, and logits `[B, K]` with records, at `parameters` or the head's own values."""
        is_dsts = dsts_of(self.head) is not None
        options: dict[str, Any] = {"noise": draw.noise} if draw.noise else {}
        if is_dsts:
            options = {
                "noise": draw.noise,
                "update_statistics": update_statistics,
                "first_order": first_order,
                "by_upstream": not first_order,
                "with_records": True,
            }
        batch = draw.batch
        with forward_context(self.how.precision, batch.maps.device):
            output = self._run(draw, parameters, options)
        logits, records = output if is_dsts else (output, ())
        logits = widen(logits)
        loss = self._loss(logits, batch.labels)
        if isinstance(batch, MixedBatch):
            rest = 1.0 - batch.share
            loss = batch.share * loss + rest * self._loss(logits, batch.partners)
        if self.how.balance_weight:
            for record in records:
                if record.choice is not None:
                    loss = loss + self.how.balance_weight * balance_loss(
                        record.choice, record.impulses, self.processes.sum_across
                    )
        return loss, (logits.detach(), records)

    def _run(
        self, draw: Draw, parameters: dict[str, Tensor] | None, options: dict[str, Any]
    ) -> Any:
        return run_at(self.head, parameters, draw.batch.maps, options)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        head = head_of(self.head)
        loss = head.loss if isinstance(head, ReadoutHead) else nn.functional.cross_entropy
        return loss(logits, labels, label_smoothing=self.how.label_smoothing)


def run_at(
    module: nn.Module, parameters: dict[str, Tensor] | None, x: Tensor, options: dict[str, Any]
) -> Any:
    """`module(x, **options)` at `parameters`, or at its own values."""
    if parameters is None:
        return module(x, **options)
    return functional_call(module, parameters, (x,), options)


# ---- the steps ---------------------------------------------------------------------------------

Answer = tuple[Tensor, tuple[LayerRecord, ...]]
Part = tuple[Draw, float]
"""A part of a batch with its randomness, and its weight in the mean."""
Iteration = Callable[..., tuple[Tensor, list[Answer]]]


class UdlObjective(Protocol):
    """A loss that UDL's steps are made on; `Objective` says what each of this does."""

    @property
    def processes(self) -> Processes: ...
    def simulated(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]: ...
    def with_features(self, draw: Draw, *, of_training: bool, with_graph: bool) -> Draw: ...
    def constant(self, draw: Draw) -> Draw: ...
    def __call__(
        self, upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
    ) -> Tensor: ...
    def first_order_loss(
        self, upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
    ) -> Tensor: ...
    def evaluate(self, draw: Draw, *, update_statistics: bool) -> tuple[Tensor, Any]: ...


class Updates(Protocol):
    """An optimiser of some parameters, as `ScheduledOptimizer` is one."""

    parameters: list[nn.Parameter]

    def step(self, gradients: Iterable[Tensor | None], skip: Tensor | None = None) -> None: ...


def udl_step(
    objective: UdlObjective,
    train: Sequence[Part],
    val: Sequence[Part],
    inner_lr: float | Tensor,
    *,
    upstream: Updates,
    downstream: Updates,
    scale: LossScale,
    udl: UdlSettings,
    redrawn: Sequence[Draw] | None = None,
) -> tuple[Tensor, list[Any]]:
    """UDL's three steps. The host reads nothing and draws nothing.

    Step 1 simulates a step of d on the training batch (Eq. 9), step 2 updates u by the loss on the
    validation batch after it (Eq. 10), step 3 updates d at the new u (Eq. 11). The same randomness
    serves step 1 and its derivative. Choice: step 3 uses it again, so that the update which was
    simulated is the one that is made, but for u'.

    Where the simulated step moves the head alone, features are computed once, with their graph,
    and step 3 goes on from them; a batch in several parts keeps no graph of more than one part, and
    step 3 computes them anew.

    Args:
        train, val: Parts of two disjoint batches; weights sum to 1 over all processes.
        inner_lr: alpha of the simulated step.
        upstream, downstream: Optimisers of u and of d.
        scale: The loss scale; a step whose gradients overflow is left out.
        udl: How the product is computed.
        redrawn: The training parts with other noise, for step 3; None: with the same.

    Returns:
        The mean loss of step 3 over all processes, and what the objective says of each part.
    """
    in_one = len(train) == 1
    known = [
        (objective.with_features(draw, of_training=True, with_graph=in_one), weight)
        for draw, weight in train
    ]
    of_val = [
        (objective.with_features(draw, of_training=False, with_graph=False), weight)
        for draw, weight in val
    ]
    u, d = objective.simulated()
    meta = meta_gradient_of_parts(
        objective,
        u,
        d,
        [(objective.constant(draw), weight) for draw, weight in known],
        of_val,
        inner_lr,
        method=udl.method,
        first_order_loss_fn=objective.first_order_loss,
        loss_scale=scale.value,
        sum_across=objective.processes.sum_named,
    )
    upstream.step(list(meta.values()), scale.judge(meta.values()))
    last = known if in_one else train
    if redrawn is not None:
        last = [
            (replace(new, features=draw.features), weight)
            for new, (draw, weight) in zip(redrawn, last, strict=True)
        ]
    gradients, loss, answers = gradients_of(objective, last, downstream.parameters, scale)
    downstream.step(gradients, scale.judge(gradients))
    return loss, answers


def gradients_of(
    objective: UdlObjective,
    parts: Sequence[Part],
    parameters: Sequence[Tensor],
    scale: LossScale,
) -> tuple[list[Tensor | None], Tensor, list[Any]]:
    """Gradients of the weighted loss by `parameters`, the loss, and what is said of each part.

    Gradients and loss (a float64 scalar on the device) are sums over processes. Running statistics
    move.
    """
    total: list[Tensor | None] = [None] * len(parameters)
    losses = []
    answers = []
    for draw, weight in parts:
        loss, answer = objective.evaluate(draw, update_statistics=True)
        factor = weight * scale.value
        found = torch.autograd.grad(loss * factor, parameters, allow_unused=True)
        total = [_add(old, new) for old, new in zip(total, found, strict=True)]
        losses.append(weight * loss.detach().double())
        answers.append(answer)
    processes = objective.processes
    total = processes.sum_gradients(total)
    if scale.dynamic:
        total = [None if g is None else g / scale.value for g in total]
    return total, processes.sum_numbers(sum(losses[1:], losses[0])), answers


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new


@dataclass(frozen=True)
class StepResult:
    """Loss, logits `[B, K]` and records (one list per part) of the pass that updated d.

    The loss, a scalar, is that of all processes' samples, the rest is this process's. All of it
    is on the device.
    """

    loss: Tensor
    logits: Tensor
    records: list[tuple[LayerRecord, ...]]

    @classmethod
    def of(cls, loss: Tensor, answers: Sequence[Answer]) -> StepResult:
        """The parts' answers as those of the batch."""
        logits = torch.cat([logits for logits, _ in answers])
        return cls(loss, logits, [records for _, records in answers])


class Stepper:
    """Makes the iterations of a training.

    Args:
        objective: The loss; its settings say how many samples are gone through at a time.
        upstream, downstream: Optimisers of u and d.
        udl: UDL's options.
        scale: The loss scale; None: the one of the precision.
        generator: Randomness of the noise.
        graphs: Captures iterations and replays them; None: each is made anew.

    Attributes:
        noise_scale: Factor on the noise of the steps to come.
    """

    def __init__(
        self,
        objective: Objective,
        upstream: ScheduledOptimizer,
        downstream: ScheduledOptimizer,
        udl: UdlSettings,
        *,
        scale: LossScale | None = None,
        generator: torch.Generator | None = None,
        graphs: IterationGraphs | None = None,
    ) -> None:
        self.objective = objective
        self.graphs = graphs
        self.upstream = upstream
        self.downstream = downstream
        self.udl = udl
        self.scale = scale or LossScale.for_precision(
            objective.how.precision, objective.processes.device
        )
        self.generator = generator
        self.noise_scale = 1.0

    def plain_step(self, batch: FeatureBatch) -> StepResult:
        """Update u and d by the gradient of one loss (the ablation without UDL, Table 5)."""
        return self._run(self._plain, batch, self._parts(batch))

    def udl_step(
        self, train_batch: FeatureBatch, val_batch: FeatureBatch, *, inner_lr: float
    ) -> StepResult:
        """UDL's three steps.

        Raises:
            ValueError: The batches share a sample.
        """
        check_disjoint(train_batch, val_batch)
        train = self._parts(train_batch)
        val = self._parts(val_batch)
        redrawn = [self._draw(draw.batch) for draw, _ in train] if self.udl.redraw_noise else None
        alpha = torch.full((), inner_lr, dtype=torch.float64, device=train_batch.maps.device)
        return self._run(self._udl, train_batch, train, val, redrawn, alpha)

    def _run(self, make: Iteration, batch: FeatureBatch, *inputs: Any) -> StepResult:
        """Make an iteration, by a graph where that can be."""
        captured = self.graphs is not None and has_fixed_launches(self.objective.head, batch.maps)
        with products_in(self.objective.how.matmul_precision):
            if self.graphs is None or not captured:
                return StepResult.of(*make(*inputs))
            return StepResult.of(*self.graphs.run(make, *inputs))

    def _plain(self, parts: list[Part]) -> tuple[Tensor, list[Answer]]:
        both = self.upstream.parameters + self.downstream.parameters
        gradients, loss, answers = gradients_of(self.objective, parts, both, self.scale)
        skip = self.scale.judge(gradients)
        self.upstream.step(gradients[: len(self.upstream.parameters)], skip)
        self.downstream.step(gradients[len(self.upstream.parameters) :], skip)
        return loss, answers

    def _udl(
        self, train: list[Part], val: list[Part], redrawn: list[Draw] | None, inner_lr: Tensor
    ) -> tuple[Tensor, list[Answer]]:
        return udl_step(
            self.objective,
            train,
            val,
            inner_lr,
            upstream=self.upstream,
            downstream=self.downstream,
            scale=self.scale,
            udl=self.udl,
            redrawn=redrawn,
        )

    def _parts(self, batch: FeatureBatch) -> list[Part]:
        """The batch's parts with their noise and weight in the mean."""
        parts = split_batch(batch, self.objective.how.part_size or len(batch))
        num_samples = len(batch) * self.objective.processes.world_size
        return [(self._draw(part), len(part) / num_samples) for part in parts]

    def _draw(self, part: FeatureBatch) -> Draw:
        return self.objective.draw(part, self.generator).with_noise_scaled(self.noise_scale)


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


# ---- upstream and downstream -------------------------------------------------------------------
#
# A model is a head on cached maps, or has a backbone in front and a head named `head`.


def head_of(model: nn.Module) -> nn.Module:
    """The head of a model that has a backbone in front; any other model is its own head."""
    inner = getattr(model, "head", None)
    return inner if isinstance(inner, nn.Module) else model


def has_fixed_launches(model: nn.Module, maps: Tensor) -> bool:
    """Whether a pass over `maps [B, C, T, H, W]` launches the same for every batch."""
    head = dsts_of(model)
    return head is None or head.has_fixed_launches(maps)


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


# ---- mixup -------------------------------------------------------------------------------------
#
# Every clip of a batch of maps is blended with another one, and so is its label:
# `x = s x_i + (1 - s) x_j`, loss `s CE(., y_i) + (1 - s) CE(., y_j)`: cross-entropy with the soft
# label. s is drawn from Beta(alpha, alpha) per batch, and the larger of s and 1 - s is taken, so
# that a clip keeps the greater part of itself. Source: Zhang et al. 2018. Deviation: not in the
# paper. Choice: under UDL the training batch is mixed, the validation batch is left as it is.


@dataclass(frozen=True, repr=False)
class MixedBatch(FeatureBatch):
    """A batch of blended maps: `labels` weigh `share`, a scalar, and `partners [B]` the rest."""

    partners: Tensor
    share: Tensor


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
    kept = torch.full((), share, dtype=maps.dtype, device=maps.device)
    return MixedBatch(maps, batch.labels, batch.rows, batch.labels[partner], kept)


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
