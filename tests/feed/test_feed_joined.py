"""Batches of joined maps are those of a store whose maps were concatenated by hand."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store.joining import JOINED_BYTES, join_views
from dsts_pipeline.feature_store.stored_types import STORED_TYPES
from dsts_pipeline.feed import EpochSampler, FeatureFeed, epoch_batches, loader, udl_pairs
from tests.feature_store.segments import JOINED_SHAPE, LOST, open_by_hand, open_segments


@pytest.fixture(params=STORED_TYPES)
def stores(request, tmp_path):
    """Joined, and by hand, without the map that lacks a segment."""
    store = open_segments(tmp_path, dtype=request.param, failures={LOST: "cut"}, num_threads=2)
    return join_views(store), open_by_hand(tmp_path / "hand", store, lost=(LOST // 2,))


def assert_same(found, expected) -> None:
    assert torch.equal(found.maps, expected.maps) and found.maps.is_contiguous()
    assert found.maps.shape[1:] == JOINED_SHAPE and found.maps.dtype == torch.float32
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.rows, expected.rows)


@pytest.mark.parametrize("worth", [0, 2**17], ids=["by threads", "at once"])
@pytest.mark.parametrize("how", ["preloaded", "shared", "from disk"])
def test_batches_and_pairs(stores, how, worth, monkeypatch):
    monkeypatch.setattr(loader, "_WORTH_A_READER", worth)
    joined, by_hand = stores
    options = {"preload_bytes": 0 if how == "from disk" else 2**30, "shared": how == "shared"}
    rows = joined.rows_of_split("train")
    np.testing.assert_array_equal(rows, by_hand.rows_of_split("train"))
    feeds = [FeatureFeed(store, rows, num_readers=3, **options) for store in stores]
    assert feeds[0].preloaded == (how != "from disk") and feeds[0].map_shape == JOINED_SHAPE
    if how == "shared":
        feeds[0] = pickle.loads(pickle.dumps(feeds[0]))
    groups = feeds[0].groups
    assert groups.tolist() == feeds[1].groups.tolist()
    order = epoch_batches(rows, 5, seed=0, epoch=1, groups=groups)
    assert sum(map(len, order)) == 8  # a clip in one of its two augmentations
    for found, expected in zip(*(feed.batches(order) for feed in feeds), strict=True):
        assert_same(found, expected)
    pairs = udl_pairs(rows, 3, seed=0, epoch=0, groups=groups)
    for found, expected in zip(*(feed.pairs(pairs) for feed in feeds), strict=True):
        assert not set(groups[np.isin(rows, found[0].rows)]) & set(
            groups[np.isin(rows, found[1].rows)]
        )
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_test_maps(stores):
    feeds = [FeatureFeed(store, store.rows_of_split("test")) for store in stores]
    assert len(feeds[0]) == 7
    assert_same(*(feed.batch(feed.rows) for feed in feeds))


@pytest.mark.parametrize("preload_bytes", [2**30, 0], ids=["memory", "shards"])
def test_maps_are_sent_and_kept_in_the_storage_type(stores, preload_bytes):
    """What is done for a GPU, with the CPU in its place."""
    joined, by_hand = stores
    rows = np.array([22, 3, 3, 17])
    expected = torch.from_numpy(by_hand.read(rows)).flatten()
    feed = FeatureFeed(joined, preload_bytes=preload_bytes)
    sent = feed._sent_maps(rows, rows)
    kept = loader.DeviceMaps(
        feed._read_slots, len(joined), joined.stored_shape, joined.stored_type, sent.device
    )
    for maps in (sent, kept.gather(torch.from_numpy(rows))):
        assert torch.equal(maps.flatten(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device_preload_bytes", [2**30, 0])
def test_batches_of_a_gpu_are_those_of_the_cpu(stores, device_preload_bytes):
    joined, by_hand = stores
    feed = FeatureFeed(joined, device="cuda", device_preload_bytes=device_preload_bytes)
    order = epoch_batches(feed.rows, 8, seed=0, epoch=0)
    for found, expected in zip(
        feed.batches(order), FeatureFeed(by_hand).batches(order), strict=True
    ):
        assert found.maps.is_cuda
        assert_same(found.to("cpu"), expected)


def test_orders_near_shards_know_where_joined_maps_lie(tmp_path):
    joined = join_views(open_segments(tmp_path))
    feed = FeatureFeed.from_settings(joined, joined.rows_of_split("train"), FeedSettings())
    expected = [joined.positions[row] // 7 for row in feed.rows]
    assert feed.shards.tolist() == expected and len(set(expected)) > 3
    sampler = EpochSampler(
        feed.rows, 4, seed=0, order="shard", groups=feed.groups, shards=feed.shards, window=2
    )
    rows = np.concatenate(sampler.batches(epoch=0))
    assert len(set(np.array(joined.video_ids)[rows])) == len(rows) == 8


def test_memory_is_told_with_what_joining_takes(tmp_path):
    store = open_segments(tmp_path)
    joined = FeatureFeed(join_views(store), num_readers=2)
    num_values = int(np.prod(JOINED_SHAPE))
    a_clip = joined.bound_bytes(8) - joined.bound_bytes(7)
    assert a_clip == 4 * num_values * 4 + 2 * num_values * 2  # float32 in 4 batches, float16 in 2
    plain = FeatureFeed(store, num_readers=2)
    assert joined.bound_bytes(1) - plain.bound_bytes(2) == 2 * JOINED_BYTES
