"""One iteration of training: an ordinary step, or UDL's three.

Enters: an `Objective`, the optimisers of u and d, batches. Leaves: updated parameters and what the
pass over the training batch gave.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead, LayerRecord
from dsts_pipeline.learn.objective import Objective
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.udl import meta_gradient


@dataclass(frozen=True)
class StepResult:
    """Loss, logits `[B, K]` and records of the pass that updated d."""

    loss: float
    logits: Tensor
    records: tuple[LayerRecord, ...]


def plain_step(
    objective: Objective,
    upstream: ScheduledOptimizer,
    downstream: ScheduledOptimizer,
    batch: FeatureBatch,
    generator: torch.Generator | None = None,
) -> StepResult:
    """Update u and d by the gradient of one loss (the ablation without UDL, Table 5)."""
    loss, logits, records = objective.evaluate(
        objective.draw(batch, generator), update_statistics=True
    )
    parameters = upstream.parameters + downstream.parameters
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    upstream.step(gradients[: len(upstream.parameters)])
    downstream.step(gradients[len(upstream.parameters) :])
    return StepResult(loss.item(), logits.detach(), records)


def udl_step(
    objective: Objective,
    upstream: ScheduledOptimizer,
    downstream: ScheduledOptimizer,
    train_batch: FeatureBatch,
    val_batch: FeatureBatch,
    *,
    inner_lr: float,
    redraw: bool = False,
    generator: torch.Generator | None = None,
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
    head = objective.head
    assert isinstance(head, DSTSHead)
    u, d = head.upstream_parameters(), head.downstream_parameters()
    train, val = objective.draw(train_batch, generator), objective.draw(val_batch, generator)
    meta = meta_gradient(objective, u, d, train, val, inner_lr)
    upstream.step([meta[name] for name in u])
    if redraw:
        train = objective.draw(train_batch, generator)
    loss, logits, records = objective.evaluate(train, update_statistics=True)
    downstream.step(torch.autograd.grad(loss, downstream.parameters, allow_unused=True))
    return StepResult(loss.item(), logits.detach(), records)


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
