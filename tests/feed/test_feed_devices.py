"""Stored maps become float32 wherever they are: by a reader on the CPU, or on a GPU."""

from __future__ import annotations

import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.stored_types import STORED_TYPES
from dsts_pipeline.feed import FeatureFeed, epoch_batches
from dsts_pipeline.feed.loader import (
    TENSOR_DTYPES,
    DeviceMaps,
    as_tensors,
    fill_float32,
    to_float32,
)

NUM_CLIPS = 40
SHAPE = (96, 8, 7, 7)  # More values than a piece of `fill_float32` has, and no multiple of it.
CPU = torch.device("cpu")


@pytest.fixture(params=STORED_TYPES)
def store(tmp_path, request):
    clips = [(f"c{number}", number % 4, "train") for number in range(NUM_CLIPS)]
    plan = StorePlan({}, clips, tuple("abcd"), SHAPE, samples_per_shard=8, dtype=request.param)
    with StoreWriter(tmp_path, plan) as writer:
        for shard in writer.pending_shards():
            size = len(writer.shard_clips(shard)), *SHAPE
            writer.write_shard(shard, np.random.default_rng(shard).standard_normal(size, "f4"))
        writer.finish({})
    return open_store(writer.path)


def values_of(store, rows):
    """What the store's own conversion gives, in float32."""
    stored = store.read_stored(rows)
    return torch.from_numpy(stored.to_float(np.empty(stored.maps.shape, np.float32)))


def keep(store, device):
    return DeviceMaps(
        lambda part: store.read_stored(np.arange(NUM_CLIPS)[part]),
        NUM_CLIPS,
        SHAPE,
        store.stored_type,
        device,
    )


@pytest.fixture(params=[1, 2], ids=["one thread", "pieces"])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("num_threads")
def test_both_conversions_give_the_stores_values(store):
    maps, scales = as_tensors(store.read_stored(range(5)))
    assert maps.dtype == TENSOR_DTYPES[store.stored_type]
    filled = torch.empty(5, *SHAPE)
    of_channels = None if scales is None else scales.flatten()
    fill_float32(filled.flatten(0, 1), maps.flatten(0, 1), of_channels)
    assert torch.equal(filled, values_of(store, range(5)))
    assert torch.equal(to_float32(maps, scales), values_of(store, range(5)))


@pytest.mark.usefixtures("num_threads")
def test_a_channel_may_be_larger_than_a_piece():
    maps = torch.randn(3, 4, 100, 100).half()
    filled = torch.empty(maps.shape)
    fill_float32(filled, maps, None)
    assert torch.equal(filled, maps.float())


def test_maps_on_a_device_are_gathered_in_any_order(store):
    rows = np.array([39, 3, 3, 17])
    assert torch.equal(keep(store, CPU).gather(torch.from_numpy(rows)), values_of(store, rows))


@pytest.mark.parametrize("preload_bytes", [2**30, 0], ids=["memory", "shards"])
def test_maps_are_sent_in_the_storage_type(store, preload_bytes, monkeypatch):
    """What is done for a GPU, with the CPU in its place."""
    feed = FeatureFeed(store, np.arange(3, NUM_CLIPS), preload_bytes=preload_bytes)
    sent = []
    monkeypatch.setattr(feed, "_send", lambda tensor: sent.append(tensor.dtype) or tensor)
    rows = np.array([39, 3, 17])
    assert torch.equal(feed._sent_maps(rows, rows - 3), values_of(store, rows))
    scales = [torch.float32] if store.stored_type == "int8" else []
    assert sent == [*scales, TENSOR_DTYPES[store.stored_type]]


class StandIn:
    """A stream and its event, which note what is asked of them."""

    def __init__(self, name, log):
        self.name = name
        self.log = log

    def record_event(self):
        self.log.append(f"{self.name} records")
        return "event"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


def test_the_users_stream_waits_and_keeps_the_memory(store, monkeypatch):
    log = []
    user = StandIn("user", log)

    @contextmanager
    def enter(stream):
        log.append(f"enter {stream.name}")
        yield
        log.append("leave")

    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: user)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, s: log.append(f"keep {s.name}"))
    feed = FeatureFeed(store)
    feed._stream = StandIn("feed", log)
    (batch,) = feed.batches([np.array([4, 2])])
    assert batch.rows.tolist() == [4, 2]
    made = ["enter feed", "feed records", "leave"]
    assert log == [*made, "user waits for event", "keep user", "keep user"]


def test_a_device_without_room_names_the_setting(store, monkeypatch):
    def refuse(*args, **options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(SettingsError, match=r"of 40 clips .*device_preload_bytes lower"):
        keep(store, CPU)


def test_settings_state_the_feed(store):
    rows = np.arange(5)
    feed = FeatureFeed.from_settings(store, rows, FeedSettings(preload_bytes=0))
    assert not feed.preloaded and feed.rows.tolist() == rows.tolist()
    assert FeatureFeed.from_settings(store, rows, FeedSettings()).preloaded


# ---- on a GPU ------------------------------------------------------------------------------------

KEPT = {
    "device": {"device_preload_bytes": 2**30},
    "memory": {"device_preload_bytes": 0},
    "shards": {"device_preload_bytes": 0, "preload_bytes": 0},
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", KEPT)
def test_batches_of_a_gpu_are_those_of_the_cpu(store, where):
    feed = FeatureFeed(store, device="cuda", **KEPT[where])
    feed = pickle.loads(pickle.dumps(feed))  # as another process gets it
    order = epoch_batches(feed.rows, 8, seed=0, epoch=0) * 20
    sums = []
    list(feed.batches(order[:8]))  # fills the allocators, which may wait for the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in feed.batches(order):
            assert batch.maps.is_cuda and batch.labels.is_cuda and not batch.rows.is_cuda
            work = batch.maps.flatten(1) @ batch.maps.flatten(1).T  # The device falls behind.
            sums.append((batch.maps.clone(), batch.labels.clone(), work))
            del batch, work
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (maps, labels, _), batch in zip(sums, FeatureFeed(store).batches(order), strict=True):
        assert torch.equal(maps.cpu(), batch.maps)
        assert torch.equal(labels.cpu(), batch.labels)
