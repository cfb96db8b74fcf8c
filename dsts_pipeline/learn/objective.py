"""The loss of a head on a batch, with its randomness fixed beforehand.

Enters: a head, a `FeatureBatch` and the noise of the pass. Leaves: cross-entropy, optionally with
the load-balancing loss, as a function of any parameter values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import LayerNoise, LayerRecord
from dsts_pipeline.head.neurons import widen
from dsts_pipeline.head.synapse import balance_loss
from dsts_pipeline.learn.mixup import MixedBatch
from dsts_pipeline.learn.parts import dsts_of
from dsts_pipeline.learn.precision import Precision, forward_context
from dsts_pipeline.learn.processes import ALONE, Processes


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
