"""UDL's pairs of batches from draws in which a clip may come many times.

Enters: the draws of a class-balanced epoch and the clip and class of each. Leaves: two sides of
draws that have no clip in common, and the pairs of batches made of them.
"""

from __future__ import annotations

import numpy as np

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.feed.samplers import split_batches

Pair = tuple[np.ndarray, np.ndarray]


def part_by_clip(
    clips: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Part draws in two sides of about equal size in every class, all draws of a clip together.

    Args:
        clips, labels: Clip and class of each draw, `[n]`.

    Returns:
        Places of the draws of either side, ascending.
    """
    generator = np.random.default_rng(derive_seed(seed, "pair-sides", epoch))
    _, first, clip_of_draw, counts = np.unique(
        clips, return_index=True, return_inverse=True, return_counts=True
    )
    shuffled = generator.permutation(len(first))
    shuffled = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    of_class = np.unique(labels, return_inverse=True)[1][first]
    ahead = np.zeros(int(of_class.max()) + 1, dtype=np.int64)  # of the second side, per class
    total, on_second = 0, np.zeros(len(first), dtype=bool)
    for clip in shuffled.tolist():
        count, lead = int(counts[clip]), int(ahead[of_class[clip]])
        on_second[clip] = lead < 0 or (lead == 0 and total < 0)
        step = count if on_second[clip] else -count
        ahead[of_class[clip]] += step
        total += step
    side = on_second[clip_of_draw]
    return np.flatnonzero(~side), np.flatnonzero(side)


def pair_sides(
    first: np.ndarray, second: np.ndarray, batch_size: int, *, drop_last: bool = False
) -> list[Pair]:
    """Train on one side against the other, then the other way round.

    Choice: as in `samplers.udl_pairs`, what the first half of an epoch trains on is what the
    second half validates on. Each side is cut into batches of its own, so an epoch may have two
    smaller batches. Where one side is longer, the validation batches against it repeat the
    shorter one from its start; against the shorter one the longer one's rest is left out.

    Raises:
        SettingsError: All draws are of one clip.
    """
    if not len(first) or not len(second):
        raise SettingsError(
            "the training clips that are left are one clip; UDL takes two disjoint batches an "
            "iteration: lower train.heldout_fraction or switch UDL off"
        )
    pairs: list[Pair] = []
    for train, val in ((first, second), (second, first)):
        against = np.resize(val, len(train))
        pairs += zip(
            split_batches(train, batch_size, drop_last=drop_last),
            split_batches(against, batch_size, drop_last=drop_last),
            strict=True,
        )
    return pairs
