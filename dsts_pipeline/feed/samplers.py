"""Which rows come when: everything follows from (rows, seed, epoch), nothing is kept in between.

So a stopped training resumes by recomputing the epoch's list and skipping the batches it has done.
`groups` names the clip of each row: rows of one clip are its views, of which an epoch takes one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.seeding import derive_seed


def epoch_order(
    rows: np.ndarray, *, seed: int, epoch: int, groups: Sequence[str] | np.ndarray | None = None
) -> np.ndarray:
    """A random order of `rows` (int64) that depends on nothing but the arguments.

    Args:
        rows: row numbers, all different.
        groups: clip id of each of `rows`; where several rows share one, a random one is taken.

    Returns:
        Permuted rows, one per clip.
    """
    generator = np.random.default_rng(derive_seed(seed, "epoch-order", epoch))
    shuffle = generator.permutation(len(rows))
    if groups is not None:
        _, first = np.unique(np.asarray(groups)[shuffle], return_index=True)
        shuffle = shuffle[np.sort(first)]
    return np.asarray(rows, dtype=np.int64)[shuffle]


def split_batches(
    order: np.ndarray, batch_size: int, *, drop_last: bool = False
) -> list[np.ndarray]:
    """Cut `order` into consecutive batches; the last one may be smaller unless dropped.

    Examples:
        >>> [batch.tolist() for batch in split_batches(np.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected >= 1")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


def epoch_batches(
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    groups: Sequence[str] | np.ndarray | None = None,
) -> list[np.ndarray]:
    """Batches of one epoch in random order, every clip once. Resume in mid-epoch by slicing."""
    order = epoch_order(rows, seed=seed, epoch=epoch, groups=groups)
    return split_batches(order, batch_size, drop_last=drop_last)


def udl_pairs(
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    groups: Sequence[str] | np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a training and a validation batch that share no clip, for one epoch of UDL.

    Choice: the paper asks for two disjoint batches of the training split per iteration and leaves
    open how an epoch deals them out. Here the validation batches run through the same random
    order half an epoch ahead: every clip is once in a training and once in a validation batch
    (but for a dropped remainder), and each epoch pairs other clips.

    Returns:
        `(train_rows, val_rows)` of equal length per iteration.

    Raises:
        SettingsError: fewer than two batches of clips.
    """
    order = epoch_order(rows, seed=seed, epoch=epoch, groups=groups)
    return pair_batches(order, batch_size, drop_last=drop_last)


def pair_batches(
    order: np.ndarray, batch_size: int, *, drop_last: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`udl_pairs` of any order whose rows are all of different clips.

    Raises:
        SettingsError: fewer than two batches of clips.
    """
    half = len(order) // 2
    if half < batch_size:
        raise SettingsError(
            f"batch size is {batch_size} and there are {len(order)} training clips; expected at "
            f"least {2 * batch_size}, since UDL takes two disjoint batches an iteration; set a "
            f"batch size of at most {half} or switch UDL off"
        )
    train = split_batches(order, batch_size, drop_last=drop_last)
    val = split_batches(np.roll(order, -half), batch_size, drop_last=drop_last)
    return list(zip(train, val, strict=True))


def evaluation_rows(
    rows: np.ndarray, rank: int, world_size: int, *, groups: np.ndarray | None = None
) -> np.ndarray:
    """The rows that process `rank` evaluates: over all processes every row exactly once.

    Choice: consecutive blocks of clips, the first ones longer by one where it does not divide
    (or empty at the end). No clip is padded or repeated, and the views of a clip stay together,
    so that their mean is taken in one place.

    Raises:
        SettingsError: `rank` is not one of the processes.
    """
    if not 0 <= rank < world_size:
        raise SettingsError(f"rank is {rank}, expected 0 to {world_size - 1}")
    rows = np.asarray(rows, dtype=np.int64)
    if groups is None:
        return np.array_split(rows, world_size)[rank]
    _, first, clip_of_row = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))[clip_of_row]
    return rows[np.isin(appearance, np.array_split(np.arange(len(first)), world_size)[rank])]
