"""The validation split out of train: whole groups, every class, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.groups import hold_out_groups
from dsts_pipeline.base.settings import DatasetSettings
from dsts_pipeline.clips.index import Clip
from dsts_pipeline.clips.prepare import _hold_out_val

LABELS = [n % 4 for n in range(200)]
SINGLE = [f"clip {n}" for n in range(200)]


def test_single_clips_give_each_class_its_rounded_share():
    held = hold_out_groups(LABELS, SINGLE, fraction=0.1, seed=0)
    assert Counter(np.array(LABELS)[held].tolist()) == {0: 5, 1: 5, 2: 5, 3: 5}


def test_the_seed_decides_and_the_order_does_not():
    held = hold_out_groups(LABELS, SINGLE, fraction=0.2, seed=1)
    order = np.random.default_rng(0).permutation(200)
    again = hold_out_groups(
        [LABELS[i] for i in order], [SINGLE[i] for i in order], fraction=0.2, seed=1
    )
    np.testing.assert_array_equal(again, held[order])
    assert (hold_out_groups(LABELS, SINGLE, fraction=0.2, seed=2) != held).any()


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=30, max_size=120),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_groups_stay_together_and_no_class_loses_all(rows, fraction, seed):
    labels, groups = [label for label, _ in rows], [f"g{group}" for _, group in rows]
    try:
        held = hold_out_groups(labels, groups, fraction=fraction, seed=seed)
    except DataError:
        return
    taken, kept = np.flatnonzero(held), np.flatnonzero(~held)
    assert {groups[i] for i in taken}.isdisjoint(groups[i] for i in kept)
    assert {labels[i] for i in kept} == set(labels)
    # Each group was taken only because it brought the counts closer to their share.
    missing = {c: fraction * n for c, n in Counter(labels).items()}
    counts = Counter(labels[i] for i in taken)
    assert sum((missing[c] - counts[c]) ** 2 for c in missing) < sum(m**2 for m in missing.values())


def test_groups_of_five_come_close_to_the_share():
    groups = [f"dive {n // 5}" for n in range(1000)]
    labels = [n % 5 for n in range(1000)]
    held = hold_out_groups(labels, groups, fraction=0.2, seed=0)
    assert 0.19 <= held.mean() <= 0.21


@pytest.mark.parametrize(
    ("by", "groups", "whole"),
    [("auto", True, True), ("group", True, True), ("clip", True, False), ("auto", False, False)],
)
def test_val_is_of_whole_groups_where_they_are_told(by, groups, whole):
    clips = tuple(
        Clip(
            id=f"c{n}",
            path=f"c{n}.mp4",
            label=n % 4,
            split="train",
            num_frames=4,
            start_frame=0,
            end_frame=4,
            size_bytes=1,
            sha256=f"{n:064x}",
            group=f"player {n // 10}" if groups else None,
        )
        for n in range(200)
    )
    dataset = DatasetSettings(heldout_fraction=0.2, heldout_by=by)
    dealt = _hold_out_val(clips, dataset)
    players = {split: {int(c.id[1:]) // 10 for c in dealt if c.split == split} for split in SPLITS}
    assert sum(clip.split == "val" for clip in dealt) == 40
    assert players["train"].isdisjoint(players["val"]) == whole
    if by == "auto" and not groups:  # what "clip", the former default, held out
        alike = _hold_out_val(clips, dataset.model_copy(update={"heldout_by": "clip"}))
        assert dealt == alike


SPLITS = "train", "val"


def test_one_group_for_all_cannot_be_held_out():
    with pytest.raises(DataError, match=r"are one group; set dataset\.heldout_by to clip"):
        hold_out_groups(LABELS, ["stick_train"] * 200, fraction=0.1, seed=0)
    with pytest.raises(DataError, match="no class has a second clip .* add clips"):
        hold_out_groups([0, 1, 2], ["a", "b", "c"], fraction=0.1, seed=0)
