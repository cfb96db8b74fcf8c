"""Which clips a training learns from, and whether they are enough for its batches.

Enters: classes and ids of the training clips, numbers of the settings. Leaves: the clips held out,
or what is missing, in words. One rule for `prepare`, which tells it before anything costly is
computed, and for `train-head`, which refuses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dsts_pipeline.base.errors import DataError, SettingsError
from dsts_pipeline.base.groups import hold_out_groups
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import HeldoutBy


def hold_out(
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    fraction: float,
    seed: int,
    by: HeldoutBy = "clip",
    origins: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split training rows into those to learn from and those held out to choose the epoch by.

    Views of one clip stay together; every class gives about the same share, and never all it has.
    By groups, clips of one origin stay together, too (`hold_out_groups`).

    Args:
        rows, labels, groups: `[n]` row numbers, classes and clip ids.
        fraction: Share of clips held out, in [0, 1).
        by: "auto" is by group where clips tell several and one of them is small enough.
        origins: Number of each row's group (player, source video), int64 `[n]`; None: none is told.

    Returns:
        `(kept_rows, heldout_rows)` in their old order.

    Raises:
        SettingsError: By group, and there are no groups, or none that can be held out.
    """
    if fraction == 0.0 or not len(rows):
        return rows, rows[:0]
    is_held = None
    if by != "clip":
        try:
            is_held = _hold_by_group(labels, groups, origins, fraction, seed)
        except DataError as error:
            if by == "group":
                raise SettingsError(str(error)) from None
    if is_held is None:
        is_held = _hold_by_clip(labels, groups, fraction, seed)
    return rows[~is_held], rows[is_held]


def _hold_by_clip(labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(derive_seed(seed, "held-out"))
    clips, first = np.unique(groups, return_index=True)
    held: list[str] = []
    for label in np.unique(labels):
        of_class = generator.permutation(clips[labels[first] == label])
        share = fraction * len(of_class)
        count = int(share) + int(generator.random() < share % 1)
        held.extend(of_class[: min(count, len(of_class) - 1)])
    return np.isin(groups, held)


def _hold_by_group(
    labels: np.ndarray, groups: np.ndarray, origins: np.ndarray | None, fraction: float, seed: int
) -> np.ndarray:
    if origins is None:
        raise DataError(
            "train.heldout_by is group, and the clips tell no groups: set it to clip, or give "
            "groups (see docs/groups.md)"
        )
    clips, first = np.unique(groups, return_index=True)
    held = hold_out_groups(
        labels[first].tolist(),
        origins[first].tolist(),
        fraction=fraction,
        seed=seed,
        setting="train.heldout_fraction",
        cure="set train.heldout_by to clip",
        stream="held-out groups",
    )
    return np.isin(groups, clips[held])


def doubt_held_out(
    labels: np.ndarray,
    groups: np.ndarray,
    origins: np.ndarray | None,
    *,
    fraction: float,
    seed: int,
    by: HeldoutBy,
) -> str:
    """A line where held-out clips share groups with the clips that are trained on; "" where not.

    One group for all clips is none: nothing is said of it. Arguments are those of `hold_out`.
    """
    if origins is None or len(np.unique(origins)) < 2:
        return ""
    given: dict[str, Any] = {"fraction": fraction, "seed": seed, "origins": origins}
    kept, held = hold_out(np.arange(len(labels)), labels, groups, by=by, **given)
    shared = held[np.isin(origins[held], origins[kept])]
    if not len(shared):
        return ""
    reason = "train.heldout_by is clip"
    cure = "set it to group"
    if by == "auto":
        num_groups = len(np.unique(origins))
        reason = f"none of {num_groups} groups is small enough for train.heldout_fraction"
        cure = "raise that"
    return (
        f"warning: {reason}: {len(np.unique(groups[shared])):,} of "
        f"{len(np.unique(groups[held])):,} held-out clips share groups with clips that are trained "
        f"on, so held-out accuracy is too high for new groups; {cure} (see docs/groups.md)"
    )


MIN_HELD_OUT = 8
"""Fewer held-out clips choose no epoch, unless there is one of each class."""


class Fitted(NamedTuple):
    """What a training takes instead of what is set, and what there is to say of it, or ""."""

    batch_size: int
    heldout_fraction: float
    told: str


def fit_to_clips(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    batch_size: int,
    heldout_fraction: float,
    seed: int,
    paired: bool,
    world_size: int = 1,
    early_stopping_epochs: int | None = None,
    heldout_by: HeldoutBy = "clip",
    origins: np.ndarray | None = None,
) -> Fitted:
    """A smaller batch where clips do not fill the one that is set, and none held out where so few
    can't choose an epoch; all else as it is set.

    Choice: eight clips, or one of each class, where those are fewer. One held-out clip is right or
    wrong, and keeps the untrained head as readily as the best one.

    Arguments are those of `find_shortage`, which refuses what can't be helped.
    """
    rows = np.arange(len(labels))
    how: dict[str, Any] = {"by": heldout_by, "origins": origins, "seed": seed}
    as_set = Fitted(batch_size, heldout_fraction, "")
    try:
        parts = hold_out(rows, labels, groups, fraction=heldout_fraction, **how)
    except SettingsError:
        return as_set
    num_kept, num_held = (len(np.unique(groups[part])) for part in parts)
    fraction = heldout_fraction
    told = ""
    if heldout_fraction and num_kept and not num_held:
        told = (
            f"train.heldout_fraction {heldout_fraction:g} holds out none of {num_kept} training "
            "clips: the last epoch counts, none is chosen"
        )
    num_classes = len(np.unique(labels))
    if 0 < num_held < min(num_classes, MIN_HELD_OUT) and early_stopping_epochs is None:
        told = (
            f"{num_held} held-out clip{'s' if num_held > 1 else ''} of {num_classes} classes "
            "can't choose an epoch: none is held out, the last epoch counts"
        )
        fraction = 0.0
        num_kept += num_held
    if num_kept >= _count_needed(batch_size, paired, world_size):
        return Fitted(batch_size, fraction, told)
    largest = num_kept // (2 if paired else 1) // world_size
    if not largest:
        return as_set
    where = f" on each of {world_size} processes" if world_size > 1 else ""
    batches = "two batches" if paired else "a batch"
    cut = (
        f"{num_kept} training clips do not fill {batches} of train.batch_size {batch_size}{where}: "
        f"batches of {largest} are taken"
    )
    return Fitted(largest, fraction, "; ".join(filter(None, (cut, told))))


def _count_needed(batch_size: int, paired: bool, world_size: int) -> int:
    """Clips without which no iteration is possible."""
    together = batch_size * world_size
    return 2 * together if paired else together if world_size > 1 else 1


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
    heldout_by: HeldoutBy = "clip",
    origins: np.ndarray | None = None,
) -> str:
    """What training clips lack, what was expected and what to do; "" if they are enough.

    Args:
        labels, groups: Class and clip id of each row of the training split.
        batch_size: Clips per batch and process.
        heldout_fraction, seed, heldout_by, origins: See `hold_out`.
        paired: Whether an iteration takes two disjoint batches, as UDL's does.
        world_size: Processes that train together.
        early_stopping_epochs: None if the training never ends early.
    """
    rows = np.arange(len(labels))
    how: dict[str, Any] = {"fraction": heldout_fraction, "by": heldout_by, "origins": origins}
    try:
        parts = hold_out(rows, labels, groups, seed=seed, **how)
    except SettingsError as error:
        return str(error)
    num_kept, num_held = (len(np.unique(groups[part])) for part in parts)
    needed = _count_needed(batch_size, paired, world_size)
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
