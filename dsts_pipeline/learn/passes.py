"""Passes over maps that a training asks for between its steps: evaluation, statistics of norms.

Enters: generators that yield a `MapPass` each time that they need one and return a result. Leaves:
the results. So the code that asks does not know whether it is served alone, or together with other
trainings by one reading of the same maps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.feed import FeatureBatch, ServesBatches, split_batches
from dsts_pipeline.feed.samplers import evaluation_rows
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.steps import dsts_of

EVALUATION_BATCH = 128
T = TypeVar("T")
Within = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class MapPass:
    """A pass that is asked for: `consume` is called with every batch of `rows`, in order."""

    rows: np.ndarray
    consume: Callable[[FeatureBatch], None]


Asking = Generator[MapPass, None, T]


def make_passes(
    asking: Asking[T],
    feed: ServesBatches,
    device: torch.device,
    *,
    batch_size: int = EVALUATION_BATCH,
) -> T:
    """Make every pass that `asking` wants; returns its result."""
    return make_passes_together([(asking, nullcontext)], feed, device, batch_size=batch_size)[0]


def make_passes_together(
    asking: Sequence[tuple[Asking[T], Within]],
    feed: ServesBatches,
    device: torch.device,
    *,
    batch_size: int = EVALUATION_BATCH,
) -> list[T]:
    """`make_passes` of several, which share the reading of rows that they want at a time.

    Rows that were wanted first come first, so that who needs more passes over them catches up
    before all go on to the next rows together.

    Args:
        asking: Each with the context that all of its own code runs in.
    """
    results: dict[int, T] = {}
    waiting: dict[int, MapPass] = {}

    def advance(number: int) -> None:
        generator, within = asking[number]
        with within():
            try:
                waiting[number] = next(generator)
            except StopIteration as end:
                waiting.pop(number, None)
                results[number] = end.value

    for number in range(len(asking)):
        advance(number)
    seen: list[np.ndarray] = []
    while waiting:
        for asked in waiting.values():
            if not any(np.array_equal(asked.rows, rows) for rows in seen):
                seen.append(asked.rows)
        wanted = {n: _place(asked.rows, seen) for n, asked in waiting.items()}
        first = min(wanted.values())
        together = [number for number, place in wanted.items() if place == first]
        for batch in feed.batches(split_batches(seen[first], batch_size)):
            batch = batch.to(device)
            for number in together:
                with asking[number][1]():
                    waiting[number].consume(batch)
        for number in together:
            advance(number)
    return [results[number] for number in range(len(asking))]


def _place(rows: np.ndarray, seen: list[np.ndarray]) -> int:
    return next(place for place, other in enumerate(seen) if np.array_equal(rows, other))


# ---- evaluation on held-out clips ----------------------------------------------------------------


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
    choose the epoch; the views' mean is taken where results are counted
    (`metrics.predictions`).
    """
    asking = evaluation_pass(head, rows, processes)
    return make_passes(asking, feed, processes.device, batch_size=batch_size)


def evaluation_pass(
    head: nn.Module, rows: np.ndarray, processes: Processes = ALONE
) -> Asking[Evaluation]:
    """`evaluate_rows` as a pass that is asked for."""
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
        self.head = head
        self.loss = 0.0
        self.num_correct = 0
        self.num_seen = 0
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
