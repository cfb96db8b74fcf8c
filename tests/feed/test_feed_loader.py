"""Batches carry the maps, labels and rows that belong together, from memory or from disk."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feed import FeatureBatch, FeatureFeed, epoch_batches, loader, udl_pairs

SHAPE = (2, 2, 3, 3)
MODES = pytest.mark.parametrize("preload_bytes", [2**30, 0], ids=["preloaded", "from disk"])


@pytest.fixture
def store(tmp_path):
    clips = [(f"c{i}", i % 4, "train" if i % 3 else "test") for i in range(50)]
    plan = StorePlan({}, clips, tuple("abcd"), SHAPE, samples_per_shard=8)
    with StoreWriter(tmp_path, plan) as writer:
        for shard in writer.pending_shards():
            positions = writer.shard_clips(shard)
            maps = np.stack([np.full(SHAPE, position, np.float32) for position in positions])
            writer.write_shard(shard, maps, {9: "failed"} if 9 in positions else {})
        writer.finish({})
    return open_store(writer.path)


@MODES
def test_batches_carry_what_belongs_together(store, preload_bytes):
    rows = store.rows_of_split("train")
    feed = FeatureFeed(store, rows, preload_bytes=preload_bytes)
    assert feed.preloaded == (preload_bytes > 0)
    assert (len(feed), feed.num_classes, feed.map_shape) == (len(rows), 4, SHAPE)
    seen = []
    for batch in feed.batches(epoch_batches(feed.rows, 8, seed=0, epoch=0)):
        assert batch.maps.dtype == torch.float32 and batch.maps.shape[1:] == SHAPE
        positions = torch.from_numpy(store.positions)[batch.rows]
        assert torch.equal(
            batch.maps, positions.float()[:, None, None, None, None].expand(-1, *SHAPE)
        )
        assert torch.equal(batch.labels, positions % 4)
        seen += batch.rows.tolist()
    assert sorted(seen) == rows.tolist()


@MODES
def test_pairs(store, preload_bytes):
    feed = FeatureFeed(store, preload_bytes=preload_bytes)
    order = udl_pairs(feed.rows, 6, seed=0, epoch=0, groups=feed.groups)
    pairs = list(feed.pairs(order))
    assert len(pairs) == len(order)
    for (train, val), (train_rows, val_rows) in zip(pairs, order, strict=True):
        assert train.rows.tolist() == train_rows.tolist()
        assert val.rows.tolist() == val_rows.tolist()


def test_resuming_in_mid_epoch_gives_the_same_batches(store):
    feed = FeatureFeed(store)
    order = epoch_batches(feed.rows, 7, seed=3, epoch=2)
    whole = [batch.maps for batch in feed.batches(order)]
    rest = [batch.maps for batch in feed.batches(order[4:])]
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


@pytest.fixture
def read_all_ahead(monkeypatch):
    """As if these maps were large."""
    monkeypatch.setattr(loader, "_WORTH_A_READER", 0)


@MODES
@pytest.mark.usefixtures("read_all_ahead")
def test_read_ahead_is_bounded_and_stops_when_left(store, preload_bytes):
    feed = FeatureFeed(store, preload_bytes=preload_bytes, read_ahead=2)
    asked = []

    def order():
        for rows in epoch_batches(feed.rows, 2, seed=0, epoch=0):
            asked.append(rows)
            yield rows

    batches = feed.batches(order())
    next(batches)
    assert len(asked) == 3
    assert reader_threads()
    batches.close()
    assert len(asked) == 3
    assert not reader_threads()


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dsts-feed")]


class UnevenFeed(FeatureFeed):
    """Makes some batches late, and fails at one; keeps who made them."""

    def __init__(self, *args, fails_at=None, **options):
        super().__init__(*args, **options)
        self.fails_at = fails_at
        self.makers = set()

    def batch(self, rows):
        self.makers.add(threading.current_thread().name)
        time.sleep(0.02 * (rows[0] % 3 == 0))
        if rows[0] == self.fails_at:
            raise StoreError(f"no batch from row {rows[0]}")
        return super().batch(rows)


@MODES
@pytest.mark.usefixtures("read_all_ahead")
def test_several_readers_keep_the_order(store, preload_bytes):
    feed = UnevenFeed(store, preload_bytes=preload_bytes, read_ahead=4, num_readers=3)
    order = epoch_batches(feed.rows, 2, seed=1, epoch=0)
    served = [batch.rows.tolist() for batch in feed.batches(order)]
    assert served == [rows.tolist() for rows in order]
    assert len(feed.makers) > 1
    assert threading.current_thread().name not in feed.makers


@MODES
@pytest.mark.usefixtures("read_all_ahead")
def test_an_error_comes_in_the_place_of_its_batch(store, preload_bytes):
    order = epoch_batches(np.arange(49), 2, seed=1, epoch=0)
    fails_at = int(order[7][0])
    feed = UnevenFeed(store, preload_bytes=preload_bytes, num_readers=3, fails_at=fails_at)
    served = []
    with pytest.raises(StoreError, match=f"no batch from row {fails_at}$"):
        for batch in feed.batches(order):
            served.append(batch.rows.tolist())
    assert served == [rows.tolist() for rows in order[:7]]
    assert not reader_threads()


def test_small_maps_in_memory_are_worth_no_thread(store):
    batches = UnevenFeed(store).batches([np.arange(4)])
    assert next(batches).rows.tolist() == [0, 1, 2, 3]
    assert not reader_threads()


@pytest.mark.parametrize("name", ["read_ahead", "num_readers"])
def test_no_readers_are_refused(store, name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected >= 1"):
        FeatureFeed(store, **{name: 0})


@MODES
def test_damage_reaches_the_reader_of_batches(store, preload_bytes):
    shard = store.path / "maps/c.2.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="shard 2"):
        feed = FeatureFeed(store, preload_bytes=preload_bytes)
        list(feed.batches(epoch_batches(feed.rows, 8, seed=0, epoch=0)))


def test_rows_of_others_are_refused(store):
    feed = FeatureFeed(store, store.rows_of_split("train"))
    foreign = int(store.rows_of_split("test")[0])
    for row in (foreign, -1, 49):
        with pytest.raises(ValueError, match=f"row {row} is not among"):
            feed.batch(np.array([row]))


def test_batch_checks_its_shapes_and_prints_no_data():
    maps, labels, rows = torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    text = repr(FeatureBatch(maps, labels, rows))
    assert text == "FeatureBatch(maps=torch.float32 (2, 2, 2, 3, 3), labels=(2,), rows=(2,))"
    with pytest.raises(ValueError, match="shapes do not fit"):
        FeatureBatch(maps, labels[:1], rows)
    with pytest.raises(ValueError, match="types do not fit"):
        FeatureBatch(maps, labels.float(), rows)
