"""A training takes clips in the order it is told to, and cuts and counts by clip, not by view."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from dsts_pipeline.base.training_clips import hold_out
from dsts_pipeline.feed import FeatureFeed, epoch_batches, udl_pairs
from dsts_pipeline.head import DSTSHead, LinearProbe
from dsts_pipeline.learn import train_head
from tests.learn.recipes import how
from tests.learn.small_feed import MemoryStore, ordered_feed

NUM_VIEWS = 3


class RecordingFeed(FeatureFeed):
    """Keeps the rows of all batches that were served, in order."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def batches(self, order):
        for batch in super().batches(order):
            self.asked.append(batch.rows.numpy())
            yield batch


def make_feed(num_clips=24, num_views=1, rare=None):
    """Three classes in turn; with `rare`, class 0 has that many clips only."""
    plain = ordered_feed(num_clips * num_views).store
    clips = np.arange(num_clips).repeat(num_views)
    labels = clips % 3
    if rare is not None:
        labels = np.where(clips < rare, 0, 1 + clips % 2)
    store = MemoryStore(plain.maps, labels, 4)
    store.video_ids = tuple(f"clip{clip}" for clip in clips)
    store.positions = np.arange(len(clips))
    store.manifest = {"array": {"samples_per_shard": 4}}
    return RecordingFeed(store)


def train(feed, **options):
    torch.manual_seed(0)
    common = {"num_epochs": 2, "batch_size": 4, "seed": 5, "recompute_statistics": False}
    head = LinearProbe(6, 4)
    history = train_head(head, feed, **how(**common | options))
    return head, history


def test_default_order_is_that_of_the_plain_functions():
    feed = make_feed()
    train(feed)
    expected = [rows for e in (0, 1) for rows in epoch_batches(feed.rows, 4, seed=5, epoch=e)]
    np.testing.assert_equal(feed.asked, expected)


def test_default_pairs_are_those_of_the_plain_functions():
    feed = make_feed()
    head = DSTSHead.paper(6, 4, num_neurons=2, num_layers=1, width=4)
    options = {"num_epochs": 1, "batch_size": 4, "seed": 5, "recompute_statistics": False}
    train_head(head, feed, **how(**options))
    expected = [rows for pair in udl_pairs(feed.rows, 4, seed=5, epoch=0) for rows in pair]
    np.testing.assert_equal(feed.asked, expected)


def test_shard_order_keeps_to_its_windows():
    feed = make_feed()
    train(feed, order="shard", shard_window=2)
    for start in range(0, 12, 2):
        two_batches = np.concatenate(feed.asked[start : start + 2])
        assert len(set((two_batches // 4).tolist())) == 2
    assert sorted(np.concatenate(feed.asked[:6]).tolist()) == list(range(24))


def test_class_balance_reaches_the_batches():
    feed = make_feed(rare=2)
    train(feed, class_balanced=True)
    counts = Counter(feed.labels[np.concatenate(feed.asked[:6])].tolist())
    assert counts == {0: 8, 1: 8, 2: 8}


@pytest.mark.parametrize("options", [{}, {"order": "shard"}, {"class_balanced": True}])
def test_an_epoch_takes_one_view_of_each_clip_that_is_not_held_out(options):
    feed = make_feed(num_views=NUM_VIEWS)
    kept, held = hold_out(feed.rows, feed.labels, feed.groups, fraction=0.25, seed=5)
    assert not set(feed.groups[kept]) & set(feed.groups[held])
    assert len(held) == 6 * NUM_VIEWS
    train(feed, heldout_fraction=0.25, num_epochs=NUM_VIEWS, **options)
    # Batches of at most 4 are training's; the held-out clips come in one batch.
    taken = np.concatenate([rows for rows in feed.asked if len(rows) <= 4])
    for epoch in np.split(taken, NUM_VIEWS):
        assert len(epoch) == 18 and set(epoch.tolist()) <= set(kept.tolist())
        if not options.get("class_balanced"):
            assert len(set(feed.groups[epoch])) == 18
    assert sorted(taken.tolist()) == kept.tolist()  # in as many epochs every view, once
