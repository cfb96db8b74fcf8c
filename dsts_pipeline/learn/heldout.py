"""A part of the training split, held out to choose the best epoch by. Never the test split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.feed import FeatureBatch, ServesBatches
from dsts_pipeline.feed.samplers import evaluation_rows
from dsts_pipeline.learn.parts import dsts_of
from dsts_pipeline.learn.passes import Asking, MapPass, make_passes
from dsts_pipeline.learn.processes import ALONE, Processes


def hold_out(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split training rows into those to learn from and those held out.

    Views of one clip stay together; every class gives about the same share, and never all it has.

    Args:
        rows, labels, groups: `[n]` row numbers, classes and clip ids.
        fraction: Share of clips held out, in [0, 1).

    Returns:
        `(kept_rows, heldout_rows)` in their old order.
    """
    if fraction == 0.0:
        return rows, rows[:0]
    generator = np.random.default_rng(derive_seed(seed, "held-out"))
    clips, first = np.unique(groups, return_index=True)
    held: list[str] = []
    for label in np.unique(labels):
        of_class = generator.permutation(clips[labels[first] == label])
        share = fraction * len(of_class)
        count = int(share) + int(generator.random() < share % 1)
        held.extend(of_class[: min(count, len(of_class) - 1)])
    is_held = np.isin(groups, held)
    return rows[~is_held], rows[is_held]


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
