"""A split out of train: "val", to choose settings by, or "test" where the annotations have none.

Enters: labels and groups of the training clips. Leaves: which of them are held out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.seeding import derive_seed


def hold_out_groups(
    labels: Sequence[int],
    groups: Sequence[str],
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
        fraction: Share held out, in [0, 1).
        seed: The same seed holds out the same clips, whatever their order.
        setting, cure: What the share is called, and what else helps than to raise it, for errors.
        stream: Draws of different streams have nothing to do with each other.

    Returns:
        bool [n], True where held out.

    Raises:
        DataError: No group can be held out without taking all clips of a class, or much more than
            the share.
    """
    if fraction == 0.0:
        return np.zeros(len(labels), dtype=bool)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
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
