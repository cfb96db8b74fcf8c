"""Groups stay whole: held out, dealt into folds, told where parts share them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsts_pipeline.base.errors import DataError, SettingsError
from dsts_pipeline.base.groups import deal_groups, number_groups, tell_shared_groups
from dsts_pipeline.base.training_clips import doubt_held_out, find_shortage, hold_out

# Twelve players, each with five clips of each of four classes, in two views.
PLAYERS = np.repeat(np.arange(12), 40)
LABELS = np.tile(np.repeat(np.arange(4), 2), 60)
CLIPS = np.array([f"clip {n // 2}" for n in range(480)])
ROWS = np.arange(480) + 1000


def test_numbers_follow_the_names_and_a_clip_without_a_group_is_one():
    numbers = number_groups(["a", "b", "c", "c", "d"], ["x", None, "w", "w", "x"])
    assert numbers.tolist() == [1, 2, 0, 0, 1]
    assert number_groups(["a", "b"], [None, None]) is number_groups(["a"], None) is None
    assert len(set(number_groups(["x", "b"], [None, "x"]))) == 2, "an id is no group's name"


# ---- held out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["auto", "group"])
@pytest.mark.parametrize("seed", range(5))
def test_whole_groups_are_held_out_every_class_about_its_share(by, seed):
    kept, held = hold_out(ROWS, LABELS, CLIPS, fraction=0.2, seed=seed, by=by, origins=PLAYERS)
    assert sorted([*kept, *held]) == ROWS.tolist()
    assert not set(PLAYERS[kept - 1000]) & set(PLAYERS[held - 1000])
    counts = Counter(LABELS[held - 1000].tolist())
    assert counts == dict.fromkeys(range(4), 20), "two of twelve players are nearest to a fifth"


@pytest.mark.parametrize("origins", [None, PLAYERS])
def test_by_clip_the_choice_is_what_it_was(origins):
    alone = hold_out(ROWS, LABELS, CLIPS, fraction=0.2, seed=3)
    by_clip = hold_out(ROWS, LABELS, CLIPS, fraction=0.2, seed=3, by="clip", origins=origins)
    auto = hold_out(ROWS, LABELS, CLIPS, fraction=0.2, seed=3, by="auto")
    for found in (by_clip, auto):
        np.testing.assert_array_equal(found[1], alone[1])
    # What was held out before there were groups in stores.
    assert alone[1][:6].tolist() == [1000, 1001, 1006, 1007, 1036, 1037]
    assert len(alone[1]) == 96 and int(alone[1] @ np.arange(96)) == 5984400


def test_the_order_of_rows_does_not_matter():
    order = np.random.default_rng(0).permutation(480)
    how = {"fraction": 0.2, "seed": 1, "by": "group"}
    _, held = hold_out(ROWS, LABELS, CLIPS, origins=PLAYERS, **how)
    _, again = hold_out(ROWS[order], LABELS[order], CLIPS[order], origins=PLAYERS[order], **how)
    assert set(held) == set(again)


def test_what_cannot_be_held_out_by_group_is_told_or_held_out_by_clip():
    two = PLAYERS // 6
    how = {"fraction": 0.1, "seed": 0}
    with pytest.raises(SettingsError, match=r"none of the 2 groups .* set train\.heldout_by to"):
        hold_out(ROWS, LABELS, CLIPS, by="group", origins=two, **how)
    with pytest.raises(SettingsError, match="is group, and the clips tell no groups"):
        hold_out(ROWS, LABELS, CLIPS, by="group", **how)
    by_clip = hold_out(ROWS, LABELS, CLIPS, **how)
    auto = hold_out(ROWS, LABELS, CLIPS, by="auto", origins=two, **how)
    np.testing.assert_array_equal(auto[1], by_clip[1])
    shortage = {"batch_size": 2, "heldout_fraction": 0.1, "seed": 0, "paired": False}
    told = find_shortage(LABELS, CLIPS, heldout_by="group", **shortage)
    assert told.startswith("train.heldout_by is group, and the clips tell no groups")
    assert find_shortage(LABELS, CLIPS, heldout_by="auto", origins=two, **shortage) == ""


def test_a_held_out_part_that_shares_groups_is_doubted():
    how = {"fraction": 0.1, "seed": 0}
    told = doubt_held_out(LABELS, CLIPS, PLAYERS, by="clip", **how)
    assert told.startswith("warning: train.heldout_by is clip: 24 of 24 held-out clips share")
    told = doubt_held_out(LABELS, CLIPS, PLAYERS // 6, by="auto", **how)
    assert "none of 2 groups is small enough for train.heldout_fraction" in told
    assert doubt_held_out(LABELS, CLIPS, PLAYERS, by="auto", **how) == ""
    assert doubt_held_out(LABELS, CLIPS, None, by="clip", **how) == ""
    assert doubt_held_out(LABELS, CLIPS, PLAYERS * 0, by="clip", **how) == "", "one group is none"
    assert doubt_held_out(LABELS, CLIPS, PLAYERS, by="clip", fraction=0.0, seed=0) == ""


# ---- folds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_folds", [2, 3, 4, 6, 12])
def test_equal_groups_are_dealt_evenly(num_folds):
    folds = deal_groups(LABELS, PLAYERS, num_folds=num_folds, seed=0)
    assert Counter(folds.tolist()) == dict.fromkeys(range(num_folds), 480 // num_folds)
    owners = {(int(player), int(fold)) for player, fold in zip(PLAYERS, folds, strict=True)}
    assert len(owners) == 12, "no player is in two folds"


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 15)), min_size=8, max_size=150),
    st.integers(2, 8),
    st.integers(0, 5),
)
def test_folds_hold_every_clip_once_and_whole_groups(rows, num_folds, seed):
    labels, groups = np.array(rows).T
    assume(len(set(groups)) >= num_folds)
    folds = deal_groups(labels, groups, num_folds=num_folds, seed=seed)
    assert set(folds) == set(range(num_folds)), "no fold is empty"
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))
    order = np.random.default_rng(0).permutation(len(rows))
    again = deal_groups(labels[order], groups[order], num_folds=num_folds, seed=seed)
    np.testing.assert_array_equal(again, folds[order])


def test_as_many_folds_as_groups_leave_one_out():
    sizes = np.random.default_rng(1).integers(1, 40, 20)
    groups = np.repeat(np.arange(20), sizes)
    folds = deal_groups(np.arange(len(groups)) % 3, groups, num_folds=20, seed=0)
    assert sorted(Counter(folds.tolist()).values()) == sorted(sizes.tolist())


def test_uneven_groups_are_dealt_nearly_evenly():
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), generator.integers(5, 50, 60))
    labels = generator.integers(0, 6, len(groups))
    folds = deal_groups(labels, groups, num_folds=5, seed=0)
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() < 0.05 * len(groups) / 5
    table = np.zeros((5, 6))
    np.add.at(table, (folds, labels), 1)
    shares = table / table.sum(axis=0)
    assert 0.15 < shares.min() and shares.max() < 0.25


def test_the_seed_deals_other_folds():
    one, other = (deal_groups(LABELS, PLAYERS, num_folds=4, seed=seed) for seed in (0, 1))
    assert len(set(zip(one, other, strict=True))) > 4


def test_more_folds_than_groups_are_refused():
    with pytest.raises(DataError, match=r"dataset\.num_folds is 13 and .* 12 groups, .* most 12"):
        deal_groups(LABELS, PLAYERS, num_folds=13, seed=0)


# ---- in words ------------------------------------------------------------------------------------


def test_shared_groups_are_told_with_the_number_of_clips_and_an_example():
    clips = ["a", "a", "b", "c", "d", "e", "f"]
    splits = ["train", "train", "train", "test", "test", "val", "test"]
    (line,) = tell_shared_groups(clips, splits, ["ann", "ann", "ann", "ann", "bob", "cid", None])
    assert line.startswith("warning: 1 of 3 test clips are of groups that train clips are of, too")
    assert "such as ann (2 train, 1 test)" in line
    assert tell_shared_groups(clips, splits, None) == []
    assert tell_shared_groups(clips, splits, list("aabcdef")) == []
    two = tell_shared_groups(clips, splits, ["ann"] * 7)
    assert [line.split()[4:6] for line in two] == [["test", "clips"], ["val", "clips"]]
