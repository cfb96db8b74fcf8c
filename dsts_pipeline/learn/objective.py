"""The loss of a head on a batch, with its randomness fixed beforehand.

Enters: a head, a `FeatureBatch` and the noise of the pass. Leaves: cross-entropy, optionally with
the load-balancing loss, as a function of any parameter values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead, LayerNoise, LayerRecord
from dsts_pipeline.head.synapse import balance_loss


@dataclass(frozen=True)
class Draw:
    """A batch together with the noise of its pass (None for heads that draw none)."""

    batch: FeatureBatch
    noise: Sequence[LayerNoise] | None


@dataclass(frozen=True)
class Objective:
    """Loss of `head`: cross-entropy plus `balance_weight` times the load-balancing loss.

    Args:
        label_smoothing: In [0, 1).
        balance_weight: 0 is the paper.
    """

    head: nn.Module
    label_smoothing: float = 0.0
    balance_weight: float = 0.0

    def draw(self, batch: FeatureBatch, generator: torch.Generator | None = None) -> Draw:
        """Fix the randomness of a pass over `batch`."""
        if not isinstance(self.head, DSTSHead):
            return Draw(batch, None)
        return Draw(batch, self.head.draw_noise(len(batch), generator))

    def __call__(
        self, upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
    ) -> Tensor:
        """The loss at these parameter values; running statistics stay as they are."""
        loss, _, _ = self.evaluate(draw, {**upstream, **downstream}, update_statistics=False)
        return loss

    def evaluate(
        self, draw: Draw, parameters: dict[str, Tensor] | None = None, *, update_statistics: bool
    ) -> tuple[Tensor, Tensor, tuple[LayerRecord, ...]]:
        """Loss, logits `[B, K]` and records, at `parameters` or the head's own values."""
        options: dict[str, Any] = {}
        if isinstance(self.head, DSTSHead):
            options = {
                "noise": draw.noise,
                "update_statistics": update_statistics,
                "with_records": True,
            }
        own = parameters is None
        maps = draw.batch.maps
        output = (
            self.head(maps, **options)
            if own
            else functional_call(self.head, parameters, (maps,), options)
        )
        logits, records = output if options else (output, ())
        loss = nn.functional.cross_entropy(
            logits, draw.batch.labels, label_smoothing=self.label_smoothing
        )
        if self.balance_weight:
            routed = [record for record in records if record.choice is not None]
            for record in routed:
                loss = loss + self.balance_weight * balance_loss(record.choice, record.impulses)
        return loss, logits, records
