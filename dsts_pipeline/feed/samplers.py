"""Which rows come when: everything follows from (rows, seed, epoch), nothing is kept in between.

So a stopped training resumes by recomputing the epoch's list and skipping the batches it has done.
`groups` names the clip of each row: rows of one clip are its views, of which an epoch takes one,
none again before all were taken (see `take_views`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.provenance import derive_seed


def epoch_order(
    rows: np.ndarray, *, seed: int, epoch: int, groups: Sequence[str] | np.ndarray | None = None
) -> np.ndarray:
    """A random order of `rows` (int64) that depends on nothing but the arguments.

    Args:
        rows: row numbers, all different.
        groups: clip id of each of `rows`; of rows that share one, the one whose turn it is comes.

    Returns:
        Permuted rows, one per clip.
    """
    generator = np.random.default_rng(derive_seed(seed, "epoch-order", epoch))
    shuffle = generator.permutation(len(rows))
    if groups is not None:
        _, clip_of_row = np.unique(np.asarray(groups), return_inverse=True)
        _, first = np.unique(clip_of_row[shuffle], return_index=True)
        clips = clip_of_row[shuffle[np.sort(first)]]
        shuffle = take_views(rows, clip_of_row, clips, np.full(len(clips), epoch), seed=seed)
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


def evaluation_rows(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The rows that process `rank` evaluates: over all processes every row exactly once.

    Choice: consecutive blocks, the first ones longer by one where it does not divide (or empty at
    the end). No row is padded or repeated.

    Raises:
        SettingsError: `rank` is not one of the processes.
    """
    if not 0 <= rank < world_size:
        raise SettingsError(f"rank is {rank}, expected 0 to {world_size - 1}")
    return np.array_split(np.asarray(rows, dtype=np.int64), world_size)[rank]


# ---- orders --------------------------------------------------------------------------------------

Order = Literal["random", "shard", "sequential"]
Groups = Sequence[str] | np.ndarray


def sequential_order(
    rows: np.ndarray, *, seed: int, epoch: int, groups: Groups | None = None
) -> np.ndarray:
    """`rows` in ascending order, one view of each clip: the order of the files."""
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
        groups: Clip id of each of `rows`; of rows that share one, one comes (see `epoch_order`).

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
    A clip's draws, not the epochs, count for the turns of its views (`take_views`).

    Args:
        rows: Row numbers, all different.
        labels: Class of each of `rows`, `[n]`.
        groups: Clip id of each of `rows`; a clip's class is that of its first row.

    Returns:
        Rows (int64), one per draw; those of small classes repeat.
    """
    names = np.arange(len(rows)) if groups is None else np.asarray(groups)
    clips, first, clip_of_row = np.unique(names, return_index=True, return_inverse=True)
    by_class = _by_value(np.asarray(labels)[first])
    generator = np.random.default_rng(derive_seed(seed, "balanced-views", epoch))
    turns = np.random.default_rng(derive_seed(seed, "balanced-classes")).permutation(len(by_class))
    begin = epoch * len(clips)
    end = (epoch + 1) * len(clips)
    of_classes = [
        _draw(by_class[label], _turns_before(begin, place, len(turns)),
              _turns_before(end, place, len(turns)), seed, int(label))
        for place, label in enumerate(turns.tolist())
    ]  # fmt: skip
    drawn, draws = (np.concatenate(parts) for parts in zip(*of_classes, strict=True))
    taken = take_views(rows, clip_of_row, drawn, draws, seed=seed)
    return np.asarray(rows, dtype=np.int64)[generator.permutation(taken)]


def _by_value(values: np.ndarray) -> list[np.ndarray]:
    """Places of each value of `values`, in the order of the values."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _turns_before(position: int, place: int, num_classes: int) -> int:
    """How many of the first `position` turns belong to the class at `place` of the round."""
    return (position - place + num_classes - 1) // num_classes


def _draw(
    clips: np.ndarray, begin: int, end: int, seed: int, label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws number `begin` to `end` of a class: its clips, shuffled anew for each pass.

    Returns:
        The clips, and how often each had been drawn before: once in every pass.
    """
    passes = range(begin // len(clips), -(-end // len(clips)))
    shuffled = [
        np.random.default_rng(derive_seed(seed, "balanced-pass", label, number)).permutation(clips)
        for number in passes
    ]
    start = begin - passes.start * len(clips)
    drawn = np.concatenate([*shuffled, clips[:0]])[start : start + end - begin]
    return drawn, np.arange(begin, end) // len(clips)


# ---- views ---------------------------------------------------------------------------------------


def take_views(
    rows: np.ndarray, clip_of_row: np.ndarray, clips: np.ndarray, draws: np.ndarray, *, seed: int
) -> np.ndarray:
    """A view for each draw of a clip: none of its V comes again before all of them came.

    Choice: draws 0 to V - 1 of a clip take its views in a random order, draws V to 2 V - 1 in
    another one, and so on; clips have orders of their own. An order follows from the seed, the
    clip's row numbers and which V draws it is for, so nothing is kept in between, and it does not
    matter which other rows there are. A batch that is dropped counts as drawn.

    Args:
        rows: Row numbers `[n]`, all different.
        clip_of_row: Number of the clip of each row, `[n]`, 0 to C - 1, each at least once.
        clips: Clip of each draw, `[m]`.
        draws: How often that clip was drawn before, `[m]`, >= 0.

    Returns:
        Places in `rows`, int64 `[m]`.
    """
    numbers = np.asarray(rows)
    by_clip = np.argsort(clip_of_row, kind="stable")
    counts = np.bincount(clip_of_row)
    starts = np.cumsum(counts) - counts
    num_views = counts[clips]
    taken = np.empty(len(clips), dtype=np.int64)
    for number in np.unique(num_views):
        own = np.flatnonzero(num_views == number)
        views = by_clip[starts[clips[own]][:, None] + np.arange(number)]  # [k, V], places in rows
        order = np.argsort(_random_keys(numbers[views], draws[own, None] // number, seed), axis=1)
        turn = order[np.arange(len(own)), draws[own] % number]
        taken[own] = views[np.arange(len(own)), turn]
    return taken


_GAMMA = np.array(0x9E3779B97F4A7C15, dtype=np.uint64)


def _random_keys(rows: np.ndarray, rounds: np.ndarray, seed: int) -> np.ndarray:
    """A random uint64 for each row and round, which broadcast: as good as a generator for each."""
    start = np.array(derive_seed(seed, "views"), dtype=np.uint64)
    of_rows = _scramble(start + _GAMMA * rows.astype(np.uint64))
    return _scramble(of_rows + _GAMMA * rounds.astype(np.uint64))


def _scramble(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, modulo 2^64: one to one, and every bit depends on every bit.

    Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, with
    the constants of Vigna's public splitmix64.c.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- pairs of draws in which a clip may come many times ------------------------------------------

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
    total = 0
    on_second = np.zeros(len(first), dtype=bool)
    for clip in shuffled.tolist():
        count = int(counts[clip])
        lead = int(ahead[of_class[clip]])
        on_second[clip] = lead < 0 or (lead == 0 and total < 0)
        step = count if on_second[clip] else -count
        ahead[of_class[clip]] += step
        total += step
    side = on_second[clip_of_draw]
    return np.flatnonzero(~side), np.flatnonzero(side)


def part_by_origin(origins: np.ndarray, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Part draws in two sides of about equal size, all draws of an origin (player) together.

    Origins go in random order to the side that has fewer draws, other ones in each epoch.

    Args:
        origins: Number of each draw's origin, int64 `[n]`.

    Returns:
        Places of the draws of either side, ascending.

    Raises:
        SettingsError: There is one origin.
    """
    numbers, of_draw, counts = np.unique(origins, return_inverse=True, return_counts=True)
    if len(numbers) < 2:
        raise SettingsError(
            "the training clips are of one group, and udl.validation_by = group takes two batches "
            "of different groups; set it to clip"
        )
    generator = np.random.default_rng(derive_seed(seed, "pair-origins", epoch))
    on_second = np.zeros(len(numbers), dtype=bool)
    lead = 0
    for origin in generator.permutation(len(numbers)).tolist():
        on_second[origin] = lead > 0
        lead += -int(counts[origin]) if on_second[origin] else int(counts[origin])
    side = on_second[of_draw]
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
