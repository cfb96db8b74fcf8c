"""Which clips a training learns from, and whether they are enough for its batches.

Enters: classes and ids of the training clips, numbers of the settings. Leaves: the clips held out,
or what is missing, in words. One rule for `prepare`, which tells it before anything costly is
computed, and for `train-head`, which refuses.
"""

from __future__ import annotations

import numpy as np

from dsts_pipeline.base.provenance import derive_seed


def hold_out(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split training rows into those to learn from and those held out to choose the epoch by.

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


def find_shortage(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    batch_size: int,
    heldout_fraction: float,
    seed: int,
    paired: bool,
    world_size: int = 1,
    early_stopping_epochs: int | None = None,
) -> str:
    """What training clips lack, what was expected and what to do; "" if they are enough.

    Args:
        labels, groups: Class and clip id of each row of the training split.
        batch_size: Clips per batch and process.
        heldout_fraction, seed: See `hold_out`.
        paired: Whether an iteration takes two disjoint batches, as UDL's does.
        world_size: Processes that train together.
        early_stopping_epochs: None if the training never ends early.
    """
    rows = np.arange(len(labels))
    parts = hold_out(rows, labels, groups, fraction=heldout_fraction, seed=seed)
    num_kept, num_held = (len(np.unique(groups[part])) for part in parts)
    together = batch_size * world_size
    needed = 2 * together if paired else together if world_size > 1 else 1
    if num_kept < needed:
        reason = (
            "UDL takes two disjoint batches an iteration" if paired else "all take a full batch"
        )
        where = f" on each of {world_size} processes" if world_size > 1 else ""
        largest = num_kept // (2 if paired else 1) // world_size
        cures = [f"set train.batch_size to at most {largest}" if largest else "get more clips"]
        if paired:
            cures.append("set udl.enabled to false")
        return (
            f"{num_kept} training clips{f' ({num_held} more are held out)' if num_held else ''}, "
            f"and train.batch_size is {batch_size}{where}; expected at least {needed} clips, since "
            f"{reason}; {', or '.join(cures)}"
        )
    if early_stopping_epochs is not None and not num_held:
        return (
            f"train.heldout_fraction {heldout_fraction:g} holds out none of {num_kept} training "
            "clips, so early stopping has nothing to judge by; set it higher or "
            "train.early_stopping_epochs to null"
        )
    return ""
