"""Evaluation of a head on clips held out of the training split, to choose the best epoch by.

Which they are: `base.training_clips`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.feed import FeatureBatch, ServesBatches
from dsts_pipeline.feed.samplers import evaluation_rows
from dsts_pipeline.learn.parts import dsts_of
from dsts_pipeline.learn.passes import Asking, MapPass, make_passes
from dsts_pipeline.learn.processes import ALONE, Processes


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over some clips; `routing [n, L]` or None."""

    loss: float
    accuracy: float
    routing: Tensor | None


def evaluate_rows(
    head: nn.Module,
    feed: ServesBatches,
    rows: np.ndarray,
    *,
    batch_size: int,
    processes: Processes = ALONE,
) -> Evaluation:
    """Evaluate `head` in evaluation mode on `rows` of `feed`, each row on one of `processes`.

    Choice: where held-out clips have several views, each counts as a clip. These figures only
    choose the epoch; the views' mean is taken where results are counted (`metrics.views`).
    """
    asking = evaluation_pass(head, rows, processes)
    return make_passes(asking, feed, processes.device, batch_size=batch_size)


def evaluation_pass(
    head: nn.Module, rows: np.ndarray, processes: Processes = ALONE
) -> Asking[Evaluation]:
    """`evaluate_rows` as one wish for a pass."""
    was_training = head.training
    head.eval()
    counts = _Counts(head)
    yield MapPass(evaluation_rows(rows, processes.rank, processes.world_size), counts.add)
    head.train(was_training)
    found = processes.gather((counts.loss, counts.num_correct, counts.num_seen, counts.routing))
    num_clips = max(sum(part[2] for part in found), 1)
    routing = [chosen for part in found for chosen in part[3]]
    return Evaluation(
        sum(part[0] for part in found) / num_clips,
        sum(part[1] for part in found) / num_clips,
        torch.cat(routing) if routing else None,
    )


class _Counts:
    """Loss, right answers and choices of `head`, summed over batches."""

    def __init__(self, head: nn.Module) -> None:
        self.head, self.loss, self.num_correct, self.num_seen = head, 0.0, 0, 0
        self.routing: list[Tensor] = []

    @torch.no_grad()
    def add(self, batch: FeatureBatch) -> None:
        logits, chosen = _classify(self.head, batch)
        self.loss += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
        self.num_seen += len(batch)
        self.num_correct += int((logits.argmax(dim=1) == batch.labels).sum())
        if chosen is not None:
            self.routing.append(chosen.cpu())


def _classify(head: nn.Module, batch: FeatureBatch) -> tuple[Tensor, Tensor | None]:
    if dsts_of(head) is None:
        return head(batch.maps), None
    logits, records = head(batch.maps, with_records=True)
    choices = [record.choice for record in records if record.choice is not None]
    return logits, torch.stack(choices, dim=1) if choices else None
