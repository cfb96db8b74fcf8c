"""Groups: clips of one origin (player, subject, source video), which should stay together.

Enters: ids, classes and group names of clips. Leaves: which of them are held out, or in which fold
each is, always by whole groups; and, in words, which clips of two parts share a group. A clip that
tells no group is a group of its own. Of all that is drawn the seed decides, not the clips' order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.provenance import derive_seed


def number_groups(
    clip_ids: Sequence[str], groups: Sequence[str | None] | None
) -> np.ndarray | None:
    """The number of each row's group, in the order of their names, int64 `[n]`.

    Args:
        clip_ids, groups: Of each row; views of a clip have one id.

    Returns:
        None where no row tells a group.
    """
    if groups is None or all(group is None for group in groups):
        return None
    pairs = zip(clip_ids, groups, strict=True)
    keys = [(1, str(clip)) if group is None else (0, group) for clip, group in pairs]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


# ---- some of them held out ---------------------------------------------------------------------


def hold_out_groups(
    labels: Sequence[int],
    groups: Sequence[str] | Sequence[int],
    *,
    fraction: float,
    seed: int,
    setting: str = "dataset.heldout_fraction",
    cure: str = "set dataset.heldout_by to clip",
    stream: str = "clips held out",
) -> np.ndarray:
    """Choose whole groups so that every class gives about `fraction` of its clips.

    Groups come in random order; one is held out if that brings the classes' counts closer to
    `fraction` of each, by the sum of squares, and leaves every class a clip to learn from. With
    one clip per group, each class gives its share rounded to the nearest whole clip.

    Args:
        labels, groups: Of each training clip.
        fraction: Share held out, in (0, 1).
        seed: The same seed holds out the same clips, whatever their order.
        setting, cure: What the share is called, and what else helps than to raise it, for errors.
        stream: Draws of different streams have nothing to do with each other.

    Returns:
        bool [n], True where held out.

    Raises:
        DataError: No group can be held out without taking all clips of a class, or much more than
            the share.
    """
    counts: dict[Any, Counter[int]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        counts[group][label] += 1
    left = Counter(labels)
    missing = {label: fraction * count for label, count in left.items()}
    generator = np.random.default_rng(derive_seed(seed, stream))
    names = sorted(counts)
    held = set()
    for position in generator.permutation(len(names)):
        group = names[position]
        gain = sum(n * (2 * missing[label] - n) for label, n in counts[group].items())
        if gain > 0 and all(left[label] > n for label, n in counts[group].items()):
            held.add(group)
            for label, n in counts[group].items():
                missing[label] -= n
                left[label] -= n
    if not held:
        found = f"none of the {len(names):,} groups of {len(labels):,} training clips"
        reason = f"{found} is small enough to hold out; raise the fraction or {cure}"
        if len(names) == 1:
            reason = f"all {len(labels):,} training clips are one group; {cure}"
        elif max(Counter(labels).values()) == 1:
            reason = "no class has a second clip that could be held out; add clips"
        raise DataError(f"{setting} = {fraction:g}: {reason}")
    return np.array([group in held for group in groups], dtype=bool)


# ---- all of them dealt into folds --------------------------------------------------------------

_WHOLE = 10**12  # of a share, so that shares are added and compared exactly


def deal_groups(labels: np.ndarray, groups: np.ndarray, *, num_folds: int, seed: int) -> np.ndarray:
    """Deal whole groups into folds of about equal size, with about equal shares of every class.

    Groups come by size, the largest first, those of one size in random order. Each goes to the fold
    where the sum over classes of (share of the class's clips)^2, plus that of all clips, grows
    least. An empty fold is always one of these, so `num_folds` groups give one group each.

    Args:
        labels, groups: Class and number of the group of each clip, int64 `[n]`.
        num_folds: At least 2.
        seed: The same seed deals the same folds, whatever the clips' order.

    Returns:
        The fold of each clip, int64 `[n]`, in 0..num_folds-1; none is empty.

    Raises:
        DataError: There are fewer groups than folds.
    """
    names, group_of_clip = np.unique(groups, return_inverse=True)
    if len(names) < num_folds:
        raise DataError(
            f"dataset.num_folds is {num_folds} and the clips are of {len(names)} groups, which "
            f"stay whole; set it to at most {len(names)}"
        )
    num_classes = int(labels.max()) + 1
    counts = np.zeros((len(names), num_classes + 1), dtype=np.int64)
    np.add.at(counts, (group_of_clip, labels), 1)
    counts[:, -1] = counts.sum(axis=1)  # all clips, beside the classes
    totals = counts.sum(axis=0)
    weights = np.maximum(_WHOLE // np.maximum(totals, 1) ** 2, 1)
    order = np.random.default_rng(derive_seed(seed, "folds")).permutation(len(names))
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    dealt = np.zeros((num_folds, num_classes + 1), dtype=np.int64)
    fold_of_group = np.zeros(len(names), dtype=np.int64)
    for group in order:
        growth = (dealt * counts[group] * weights).sum(axis=1)  # but for what all folds share
        fold = int(growth.argmin())
        dealt[fold] += counts[group]
        fold_of_group[group] = fold
    return fold_of_group[group_of_clip]


# ---- what parts have in common, in words -------------------------------------------------------


def tell_shared_groups(
    clip_ids: Sequence[str], splits: Sequence[str], groups: Sequence[str | None] | None
) -> list[str]:
    """A line for each split whose clips share groups with the split "train"; none where none does.

    Args:
        clip_ids, splits, groups: Of each row; a clip counts once, however many views it has.
    """
    if groups is None:
        return []
    clips = set(zip(splits, clip_ids, groups, strict=True))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for split, _, group in clips:
        if group is not None:
            counts[split][group] += 1
    totals = Counter(split for split, _, _ in clips)
    lines = []
    for split in sorted(counts.keys() - {"train"}):
        shared = sorted(counts[split].keys() & counts["train"].keys())
        if not shared:
            continue
        number = sum(counts[split][group] for group in shared)
        first = shared[0]
        lines.append(
            f"warning: {number:,} of {totals[split]:,} {split} clips are of groups that train "
            f"clips are of, too, such as {first} ({counts['train'][first]:,} train, "
            f"{counts[split][first]:,} {split}): accuracy on {split} is too high for new groups; "
            "see docs/groups.md"
        )
    return lines
