"""In which order the rows of an epoch come: random, shuffled near their shards, or as stored.

Enters: row numbers and what is known of them (clip, class, shard), seed and epoch. Leaves: row
numbers. Everything follows from the arguments, so an epoch can be computed again at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.feed.samplers import epoch_order

Order = Literal["random", "shard", "sequential"]
Groups = Sequence[str] | np.ndarray


def sequential_order(
    rows: np.ndarray, *, seed: int, epoch: int, groups: Groups | None = None
) -> np.ndarray:
    """`rows` in ascending order, one (random) view of each clip: the order of the files."""
    return np.sort(epoch_order(rows, seed=seed, epoch=epoch, groups=groups))


def shard_order(
    rows: np.ndarray,
    shards: np.ndarray,
    *,
    window: int,
    seed: int,
    epoch: int,
    groups: Groups | None = None,
) -> np.ndarray:
    """Shards in random order, and their rows shuffled among `window` shards at a time.

    Choice: windows follow one another without overlap. A reader that keeps `window` shards at
    hand takes each shard once an epoch; the price is that clips meet only those of the window's
    shards, so a data set that is stored class by class wants a window of many shards.

    Args:
        rows: Row numbers, all different.
        shards: Shard of each of `rows`, `[n]`.
        window: Shards whose clips are mixed, >= 1.
        groups: Clip id of each of `rows`; where several rows share one, a random one is taken.

    Returns:
        Permuted rows, one per clip.
    """
    if window < 1:
        raise ValueError(f"window is {window}, expected >= 1")
    order = epoch_order(rows, seed=seed, epoch=epoch, groups=groups)
    return arrange_by_shard(order, rows, shards, window=window, seed=seed, epoch=epoch)


def arrange_by_shard(
    order: np.ndarray, rows: np.ndarray, shards: np.ndarray, *, window: int, seed: int, epoch: int
) -> np.ndarray:
    """A shuffled `order` (rows may repeat) rearranged into windows; see `shard_order`."""
    ascending = np.argsort(rows)
    places = ascending[np.searchsorted(rows, order, sorter=ascending)]
    own = np.asarray(shards)[places]
    numbers = np.unique(own)
    generator = np.random.default_rng(derive_seed(seed, "shard-order", epoch))
    window_of = np.empty(len(numbers), dtype=np.int64)
    window_of[generator.permutation(len(numbers))] = np.arange(len(numbers)) // window
    # Stable: inside a window the rows keep their random order.
    return order[np.argsort(window_of[np.searchsorted(numbers, own)], kind="stable")]


def balanced_draws(
    rows: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, groups: Groups | None = None
) -> np.ndarray:
    """As many draws as there are clips, every class equally often, in random order.

    Choice: the classes take turns without end, in an order that the seed decides, and an epoch
    is the next n turns; so their numbers differ by one at most, and no class is ahead for long.
    A class gives its clips in random order, all of them before any comes again, over the border
    between epochs too: rare classes repeat clips, frequent ones leave some for later epochs.
    Each draw takes a random view of its clip.

    Args:
        rows: Row numbers, all different.
        labels: Class of each of `rows`, `[n]`.
        groups: Clip id of each of `rows`; views of a clip share their class.

    Returns:
        Rows (int64), one per draw; those of small classes repeat.
    """
    names = np.arange(len(rows)) if groups is None else np.asarray(groups)
    clips, first, clip_of_row = np.unique(names, return_index=True, return_inverse=True)
    by_class = _by_value(np.asarray(labels)[first])
    generator = np.random.default_rng(derive_seed(seed, "balanced-views", epoch))
    views = _by_value(clip_of_row)
    turns = np.random.default_rng(derive_seed(seed, "balanced-classes")).permutation(len(by_class))
    begin, end = epoch * len(clips), (epoch + 1) * len(clips)
    drawn = np.concatenate(
        [
            _draw(by_class[label], _turns_before(begin, place, len(turns)),
                  _turns_before(end, place, len(turns)), seed, int(label))
            for place, label in enumerate(turns.tolist())
        ]
    )  # fmt: skip
    picked = [views[clip][generator.integers(len(views[clip]))] for clip in drawn.tolist()]
    return np.asarray(rows, dtype=np.int64)[generator.permutation(np.asarray(picked, np.int64))]


def _by_value(values: np.ndarray) -> list[np.ndarray]:
    """Places of each value of `values`, in the order of the values."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _turns_before(position: int, place: int, num_classes: int) -> int:
    """How many of the first `position` turns belong to the class at `place` of the round."""
    return (position - place + num_classes - 1) // num_classes


def _draw(clips: np.ndarray, begin: int, end: int, seed: int, label: int) -> np.ndarray:
    """Draws number `begin` to `end` of a class: its clips, shuffled anew for each pass."""
    passes = range(begin // len(clips), -(-end // len(clips)))
    shuffled = [
        np.random.default_rng(derive_seed(seed, "balanced-pass", label, number)).permutation(clips)
        for number in passes
    ]
    start = begin - passes.start * len(clips)
    return np.concatenate([*shuffled, clips[:0]])[start : start + end - begin]
