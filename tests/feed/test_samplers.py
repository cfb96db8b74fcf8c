"""Orders follow from (seed, epoch); UDL pairs never share a clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import epoch_batches, epoch_order, udl_pairs

ROWS = np.arange(100, 203)


def test_every_row_once_an_epoch_in_an_order_of_its_own():
    first, again = (epoch_order(ROWS, seed=1, epoch=0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(np.sort(first), ROWS)
    for other in (epoch_order(ROWS, seed=1, epoch=1), epoch_order(ROWS, seed=2, epoch=0)):
        assert (first != other).any()


def test_order_is_the_same_on_every_machine():
    assert epoch_order(np.arange(8), seed=0, epoch=0).tolist() == [0, 4, 2, 6, 7, 1, 5, 3]


def test_batches_cover_the_epoch():
    batches = epoch_batches(ROWS, 10, seed=0, epoch=3)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    np.testing.assert_array_equal(np.concatenate(batches), epoch_order(ROWS, seed=0, epoch=3))
    assert len(epoch_batches(ROWS, 10, seed=0, epoch=3, drop_last=True)) == 10
    with pytest.raises(ValueError, match="batch_size is 0"):
        epoch_batches(ROWS, 0, seed=0, epoch=0)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(2, 200),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 5),
    num_views=st.integers(1, 3),
    drop_last=st.booleans(),
)
def test_pairs_share_no_clip_and_use_each_once(num_rows, batch_size, epoch, num_views, drop_last):
    rows = np.arange(num_rows * num_views)
    groups = np.array([f"clip {row // num_views}" for row in rows])
    options = {"seed": 0, "epoch": epoch, "groups": groups, "drop_last": drop_last}
    if batch_size > num_rows // 2:
        with pytest.raises(SettingsError, match="two disjoint batches"):
            udl_pairs(rows, batch_size, **options)
        return
    pairs = udl_pairs(rows, batch_size, **options)
    for train, val in pairs:
        assert len(train) == len(val) > 0
        assert not set(groups[train]) & set(groups[val])
    for side in zip(*pairs, strict=True):
        clips = groups[np.concatenate(side)].tolist()
        assert len(set(clips)) == len(clips)
        assert len(clips) == (num_rows // batch_size * batch_size if drop_last else num_rows)


def test_pairs_are_other_pairs_each_epoch():
    def partners(epoch):
        pairs = udl_pairs(ROWS, 10, seed=0, epoch=epoch)
        return {(a, b) for train, val in pairs for a, b in zip(train, val, strict=True)}

    assert len(partners(0) & partners(1)) < len(ROWS) // 4


def test_an_epoch_takes_one_view_of_each_clip():
    groups = np.repeat(["a", "b", "c"], 4)
    taken = [epoch_order(np.arange(12), seed=0, epoch=epoch, groups=groups) for epoch in range(20)]
    assert all(sorted(groups[order]) == ["a", "b", "c"] for order in taken)
    assert len({row for order in taken for row in order.tolist()}) == 12
