"""Every order keeps its promise: clips once, classes evenly, pairs apart, processes apart."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import (
    EpochSampler,
    balanced_draws,
    epoch_batches,
    evaluation_rows,
    sequential_order,
    shard_order,
    udl_pairs,
)

ORDERS = ("random", "shard", "sequential")


def make_sampler(num_clips=40, num_views=1, num_classes=3, per_shard=4, skewed=False, **options):
    """Rows 100, 101, ... clip by clip, view by view; the views of a clip lie side by side.

    Classes are of equal size, or (skewed) of 1, 2, 4, ... clips and the last of the rest.
    """
    rows = 100 + np.arange(num_clips * num_views)
    clips = np.arange(num_clips).repeat(num_views)
    labels = clips % num_classes
    if skewed:
        labels = np.minimum(np.log2(clips + 1).astype(int), num_classes - 1)
    columns = {
        "groups": np.array([f"clip {clip}" for clip in clips]),
        "labels": labels,
        "shards": np.arange(len(rows)) // per_shard,
        "window": 2,
    }
    return EpochSampler(rows, **({"batch_size": 4, "seed": 0} | columns | options))


def clips_of(sampler, rows):
    return sampler.groups[np.asarray(rows) - 100].tolist()


options_of_samplers = st.fixed_dictionaries(
    {
        "num_clips": st.integers(2, 60),
        "num_views": st.integers(1, 3),
        "num_classes": st.integers(1, 7),
        "skewed": st.booleans(),
        "batch_size": st.integers(1, 12),
        "order": st.sampled_from(ORDERS),
        "class_balanced": st.booleans(),
        "world_size": st.integers(1, 3),
        "drop_last": st.booleans(),
        "window": st.integers(1, 5),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=200, deadline=None)
@given(options=options_of_samplers, epoch=st.integers(0, 4))
def test_pairs_share_no_clip_over_all_processes(options, epoch):
    first = make_sampler(**options)
    ranks = [replace(first, rank=rank) for rank in range(first.world_size)]
    try:
        iterations = list(zip(*(sampler.pairs(epoch) for sampler in ranks), strict=True))
    except SettingsError:
        assert first.batch_size * first.world_size > options["num_clips"] // 2 or (
            first.class_balanced and options["num_clips"] < 2 * len(ranks) * first.batch_size + 2
        )
        return
    for parts in iterations:
        train = np.concatenate([pair[0] for pair in parts])
        val = np.concatenate([pair[1] for pair in parts])
        assert len(train) == len(val) > 0
        assert not set(clips_of(first, train)) & set(clips_of(first, val))
        assert len({len(pair[0]) for pair in parts}) == 1


@settings(max_examples=100, deadline=None)
@given(options=options_of_samplers, epoch=st.integers(0, 4))
def test_an_epoch_takes_each_clip_once_or_each_class_equally(options, epoch):
    sampler = make_sampler(**(options | {"world_size": 1, "drop_last": False}))
    rows = np.concatenate(sampler.batches(epoch))
    assert len(rows) == options["num_clips"]
    if not options["class_balanced"]:
        assert sorted(clips_of(sampler, rows)) == sorted(set(sampler.groups))
        return
    counts = Counter(sampler.labels[rows - 100].tolist())
    shares = [counts[label] for label in set(sampler.labels.tolist())]
    assert max(shares) - min(shares) <= 1


def test_defaults_are_the_plain_functions():
    sampler = make_sampler(num_views=2)
    for epoch in range(3):
        common = {"seed": 0, "epoch": epoch, "groups": sampler.groups}
        expected = epoch_batches(sampler.rows, 4, **common)
        np.testing.assert_equal(sampler.batches(epoch), expected)
        np.testing.assert_equal(sampler.pairs(epoch), udl_pairs(sampler.rows, 4, **common))


def test_shard_order_goes_through_each_window_once():
    rows, shards = np.arange(120), np.arange(120) // 10
    order = shard_order(rows, shards, window=3, seed=0, epoch=0)
    assert sorted(order.tolist()) == rows.tolist()
    windows = [set(shards[order[start : start + 30]].tolist()) for start in range(0, 120, 30)]
    assert all(len(window) == 3 for window in windows)
    assert set().union(*windows) == set(range(12))
    # Mixed inside a window, and other shards together in the next epoch.
    assert len(set(shards[order[:8]].tolist())) == 3
    again = shard_order(rows, shards, window=3, seed=0, epoch=1)
    assert {*shards[again[:30]].tolist()} != windows[0]


def count_fetches(batches, shards, num_kept):
    """Downloads of a reader that keeps the shards that it used last, batch by batch."""
    kept: list[int] = []
    count = 0
    for rows in batches:
        for shard in sorted(set(shards[rows].tolist())):
            count += shard not in kept
            kept = [*(other for other in kept if other != shard), shard][-num_kept:]
    return count


def test_shard_order_fetches_each_shard_once_with_a_cache_of_one_window():
    rows, shards = np.arange(1200), np.arange(1200) // 20
    near = EpochSampler(rows, 8, seed=0, order="shard", shards=shards, window=4)
    assert count_fetches(near.batches(0), shards, 4) == 60
    assert count_fetches(EpochSampler(rows, 8, seed=0).batches(0), shards, 4) > 1000
    pairs = [batch for pair in near.pairs(0) for batch in pair]
    assert count_fetches(pairs, shards, 12) <= 2.2 * 60


def test_sequential_order_is_the_order_of_the_files():
    rows = np.array([5, 1, 9, 3])
    assert sequential_order(rows, seed=0, epoch=0).tolist() == [1, 3, 5, 9]


def test_classes_take_turns_and_clips_come_back_last():
    labels = np.array([0] * 90 + [1] * 7 + [2] * 3)
    rows = np.arange(100)
    drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for epoch in range(30):
        order = balanced_draws(rows, labels, seed=0, epoch=epoch)
        assert sorted(Counter(labels[order].tolist()).values()) == [33, 33, 34]
        for row in order.tolist():
            drawn[int(labels[row])].append(row)
    for label, of_class in drawn.items():
        counts = Counter(of_class)
        # 1000 draws each: no clip is ever more than one pass ahead of another of its class.
        assert len(of_class) == 1000 and len(counts) == (labels == label).sum()
        assert max(counts.values()) - min(counts.values()) <= 1


def test_balanced_draws_take_random_views():
    sampler = make_sampler(num_clips=6, num_views=4, num_classes=2)
    taken = [
        balanced_draws(sampler.rows, sampler.labels, seed=0, epoch=epoch, groups=sampler.groups)
        for epoch in range(30)
    ]
    assert all(len(order) == 6 for order in taken)
    assert set(np.concatenate(taken).tolist()) == set(sampler.rows.tolist())


def test_balanced_pairs_mirror_each_other_where_they_can():
    sampler = make_sampler(num_clips=48, num_classes=3, class_balanced=True)
    pairs = sampler.pairs(0)
    train, val = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert sorted(train.tolist()) == sorted(val.tolist())
    assert sorted(Counter(sampler.labels[val - 100].tolist()).values()) == [16, 16, 16]


@pytest.mark.parametrize(("order", "balanced"), list(itertools.product(ORDERS, (False, True))))
def test_orders_depend_on_seed_and_epoch_alone(order, balanced):
    sampler = make_sampler(order=order, class_balanced=balanced, num_views=2)
    for paired in (sampler.batches, sampler.pairs):
        np.testing.assert_equal(paired(3), paired(3))
    other = replace(sampler, seed=1)
    assert np.concatenate(other.batches(3)).tolist() != np.concatenate(sampler.batches(3)).tolist()


def test_processes_train_on_equal_parts_of_one_order():
    alone = make_sampler(num_clips=43, batch_size=12)
    ranks = [make_sampler(num_clips=43, batch_size=4, rank=r, world_size=3) for r in range(3)]
    together = list(zip(*(sampler.batches(1) for sampler in ranks), strict=True))
    assert {len(batch) for parts in together for batch in parts} == {4}
    expected = [batch for batch in alone.batches(1) if len(batch) == 12]
    np.testing.assert_equal([np.concatenate(parts) for parts in together], expected)
    assert len(together) == 3  # 36 of 43 clips: fewer than 12 are dropped


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(0, 120), world_size=st.integers(1, 6))
def test_processes_evaluate_every_row_once(num_rows, world_size):
    rows = np.arange(num_rows)
    parts = [evaluation_rows(rows, rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_balanced": True, "labels": None}, "needs the labels"),
        ({"order": "shard", "shards": None}, "needs the shards"),
        ({"labels": np.zeros(3)}, "3 labels for 40 rows"),
        ({"rank": 2, "world_size": 2}, "rank is 2, expected 0 to 1"),
        ({"num_clips": 0}, "no rows to sample"),
    ],
)
def test_what_does_not_fit_is_told(options, message):
    with pytest.raises(SettingsError, match=message):
        make_sampler(**options)


def test_too_few_clips_are_told():
    with pytest.raises(SettingsError, match="do not fill a batch of 16 on each of 3 processes"):
        make_sampler(batch_size=16, world_size=3).batches(0)
    with pytest.raises(SettingsError, match="expected at least 96"):
        make_sampler(batch_size=16, world_size=3).pairs(0)
    lonely = make_sampler(num_clips=1, num_views=3, class_balanced=True)
    with pytest.raises(SettingsError, match="one clip"):
        lonely.pairs(0)
    with pytest.raises(ValueError, match="window is 0"):
        make_sampler(order="shard", window=0).batches(0)
    with pytest.raises(SettingsError, match="rank is -1"):
        evaluation_rows(np.arange(3), -1, 2)


# ---- pairs of different origins (players, source videos) -----------------------------------------


@given(options_of_samplers, st.integers(2, 9), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_pairs_may_share_no_origin_over_all_processes(options, num_origins, epoch):
    alone = make_sampler(**options)
    numbers = np.array([int(name.split()[1]) % num_origins for name in alone.groups])
    world_size = options["world_size"]
    samplers = [replace(alone, origins=numbers, rank=rank) for rank in range(world_size)]
    try:
        pairs = [sampler.pairs(epoch) for sampler in samplers]
    except SettingsError:
        return  # too few clips, which other tests are about
    for of_all in zip(*pairs, strict=True):
        train, val = (
            {int(numbers[row - 100]) for side in sides for row in side}
            for sides in zip(*of_all, strict=True)
        )
        assert not train & val


def test_origins_take_other_sides_in_each_epoch_and_all_clips_train():
    origins = np.arange(40) % 8
    sampler = make_sampler(num_clips=40, batch_size=5, origins=origins)
    first_sides = set()
    for epoch in range(12):
        pairs = sampler.pairs(epoch)
        trained = np.concatenate([train for train, _ in pairs])
        assert sorted(trained.tolist()) == sampler.rows.tolist()
        first_sides.add(frozenset(origins[pairs[0][0] - 100].tolist()))
    assert len(first_sides) > 6


def test_one_origin_is_told():
    sampler = make_sampler(origins=np.zeros(40, dtype=np.int64))
    with pytest.raises(SettingsError, match="of one group"):
        sampler.pairs(0)
