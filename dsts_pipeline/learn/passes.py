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

from dsts_pipeline.feed import FeatureBatch, ServesBatches, split_batches

EVALUATION_BATCH = 128
T = TypeVar("T")
Within = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class MapPass:
    """A wish: `consume` is called with every batch of `rows`, in order."""

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
        for wish in waiting.values():
            if not any(np.array_equal(wish.rows, rows) for rows in seen):
                seen.append(wish.rows)
        wanted = {n: _place(wish.rows, seen) for n, wish in waiting.items()}
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
