"""Cached views: none comes again before all came, whatever order, classes and processes are."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsts_pipeline.feed import EpochSampler, balanced_draws, epoch_order
from dsts_pipeline.feed.samplers import take_views
from tests.feed.test_samplers_epochs import ORDERS, make_sampler, options_of_samplers

# ---- one view: the batches of releases before views had turns, to the row ------------------------

# Of the code before `take_views`, by `digest_batches`.
BEFORE = {
    ("random", False): "0cc18e23f82f589d",
    ("random", True): "fc2ab8f7d1f1651b",
    ("shard", False): "da2179435cdb9ee4",
    ("shard", True): "3dfbb8ce5d975883",
    ("sequential", False): "c3a2ed233cb02493",
    ("sequential", True): "22f99118b619bed5",
}


def digest_batches(order, balanced):
    """Of batches and pairs of four epochs: one process, and two with classes of unequal size."""
    digest = hashlib.sha256()
    for skewed, world_size, seed in ((False, 1, 0), (True, 2, 1)):
        for rank in range(world_size):
            sampler = make_sampler(
                num_clips=45,
                num_classes=4,
                order=order,
                class_balanced=balanced,
                skewed=skewed,
                rank=rank,
                world_size=world_size,
                seed=seed,
            )
            for epoch in range(4):
                parts = [*sampler.batches(epoch), *itertools.chain(*sampler.pairs(epoch))]
                digest.update(repr([part.tolist() for part in parts]).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(("order", "balanced"), list(BEFORE))
def test_one_view_gives_the_batches_that_it_always_gave(order, balanced):
    assert digest_batches(order, balanced) == BEFORE[order, balanced]


def test_clips_come_in_the_order_that_they_always_came_in():
    sampler = make_sampler(num_clips=12, num_views=3)
    clips = [((rows - 100) // 3).tolist() for rows in sampler.batches(2)]
    assert clips == [[7, 1, 4, 5], [6, 2, 9, 10], [8, 11, 3, 0]]


# ---- several views -------------------------------------------------------------------------------


def test_views_are_the_same_on_every_machine():
    groups = np.repeat(["a", "b", "c"], 3)
    taken = [epoch_order(np.arange(9), seed=0, epoch=e, groups=groups) for e in range(6)]
    expected = [[2, 5, 8], [0, 4, 7], [1, 3, 6], [1, 3, 7], [2, 4, 6], [0, 5, 8]]
    assert [np.sort(order).tolist() for order in taken] == expected


def sampler_of(counts, **options):
    """Clip i has `counts[i]` views: rows 10 i, 10 i + 1, ..."""
    rows = np.array([10 * clip + view for clip, n in enumerate(counts) for view in range(n)])
    clips = rows // 10
    columns = {
        "groups": np.array([f"clip {clip}" for clip in clips]),
        "labels": np.minimum(np.log2(clips + 1).astype(int), 2),
        "shards": np.arange(len(rows)) // 4,
        "window": 2,
    }
    return EpochSampler(rows, **({"batch_size": 2, "seed": 0} | columns | options))


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=24),
    order=st.sampled_from(ORDERS),
    balanced=st.booleans(),
    seed=st.integers(0, 3),
    num_epochs=st.integers(1, 12),
)
def test_no_view_comes_again_before_all_came(counts, order, balanced, seed, num_epochs):
    sampler = sampler_of(counts, order=order, class_balanced=balanced, seed=seed)
    drawn = Counter()
    for epoch in range(num_epochs):
        drawn.update(np.concatenate(sampler.batches(epoch)).tolist())
        for clip, num_views in enumerate(counts):
            times = [drawn[10 * clip + view] for view in range(num_views)]
            assert max(times) - min(times) <= 1
    if not balanced:
        assert sum(drawn.values()) == len(counts) * num_epochs


@settings(max_examples=100, deadline=None)
@given(options=options_of_samplers, paired=st.booleans())
def test_nor_where_processes_drop_what_does_not_fill_a_batch(options, paired):
    first = make_sampler(**(options | {"class_balanced": False}))
    if options["num_clips"] < 2 * first.batch_size * first.world_size:
        return
    ranks = [replace(first, rank=rank) for rank in range(first.world_size)]
    num_views = options["num_views"]
    for start in (0, 2 * num_views):  # whole rounds
        batches = []
        for epoch in range(start, start + num_views):
            for sampler in ranks:
                found = sampler.pairs(epoch) if paired else sampler.batches(epoch)
                batches += [pair[0] for pair in found] if paired else found
        times = Counter(np.concatenate(batches).tolist())
        assert max(times.values()) == 1


@pytest.mark.parametrize(("order", "balanced"), list(itertools.product(ORDERS, (False, True))))
def test_both_batches_of_a_pair_come_from_one_draw(order, balanced):
    sampler = sampler_of([4] * 24, order=order, class_balanced=balanced)
    for epoch in range(3):
        drawn = set(np.concatenate(sampler.batches(epoch)).tolist())
        sides = zip(*sampler.pairs(epoch), strict=True)
        train, val = (set(np.concatenate(side).tolist()) for side in sides)
        assert train == drawn and val <= drawn


def test_processes_share_the_draws_of_one():
    alone = make_sampler(num_clips=43, num_views=4, batch_size=12)
    ranks = [replace(alone, batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    for epoch in range(5):
        parts = zip(*(sampler.batches(epoch) for sampler in ranks), strict=True)
        expected = [batch for batch in alone.batches(epoch) if len(batch) == 12]
        np.testing.assert_equal([np.concatenate(part) for part in parts], expected)


def test_clips_and_rounds_have_orders_of_their_own():
    """Of 600 clips with 3 views each of the 6 orders is taken by about 100, in every round."""
    clips = np.arange(600)
    orders = []
    for start in (0, 3, 30):
        views = [
            take_views(np.arange(1800), clips.repeat(3), clips, np.full(600, draw), seed=0) % 3
            for draw in range(start, start + 3)
        ]
        orders.append([tuple(order) for order in np.transpose(views).tolist()])
        shares = Counter(orders[-1])
        # 6 of a hundred fair draws of 600 are 4 deviations (of 9.1) off once in 15,000.
        assert len(shares) == 6 and all(abs(count - 100) < 37 for count in shares.values())
    for one, other in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 140  # by chance 100


def test_a_clips_views_do_not_depend_on_the_other_clips():
    groups = np.arange(20).repeat(4)
    rows = np.arange(80)
    kept = (groups != 3) & (groups != 11)  # such as clips that are held out
    for epoch in range(5):
        whole = epoch_order(rows, seed=0, epoch=epoch, groups=groups)
        part = epoch_order(rows[kept], seed=0, epoch=epoch, groups=groups[kept])
        assert set(part.tolist()) == set(whole[kept[whole]].tolist())


def test_a_clip_that_comes_often_goes_through_its_views_within_an_epoch():
    """A class of one clip, two of ten: the one clip is drawn seven times an epoch."""
    sampler = sampler_of([5, *[2] * 20])
    labels = np.where(sampler.rows < 10, 0, 1 + sampler.rows // 10 % 2)
    times = Counter()
    for epoch in range(5):
        order = balanced_draws(sampler.rows, labels, seed=0, epoch=epoch, groups=sampler.groups)
        rare = order[order < 10].tolist()
        assert len(rare) == 7 and len(set(rare)) == 5
        times.update(rare)
    assert set(times.values()) == {7}
