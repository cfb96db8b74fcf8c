"""A feed's memory: bounded, shared between processes, in the storage type."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feed import BatchDataset, FeatureFeed, epoch_batches
from dsts_pipeline.feed import loader as preload

SHAPE = (16, 2, 4, 4)
TYPES = ("float16", "bfloat16", "float32", "int8")


def write(root, num_clips=50, shape=SHAPE, **options):
    """A store whose maps hold small whole numbers, exact in every storage type but int8."""
    clips = [(f"c{i}", i % 4, "train") for i in range(num_clips)]
    plan = StorePlan({}, clips, tuple("abcd"), shape, samples_per_shard=8, **options)
    with StoreWriter(root, plan) as writer:
        for shard in writer.pending_shards():
            positions = writer.shard_clips(shard)
            maps = [np.random.default_rng(p).integers(0, 99, shape) for p in positions]
            writer.write_shard(shard, np.stack(maps).astype(np.float32))
        writer.finish({})
    return writer.path


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", TYPES)
def test_batches_are_the_same_from_memory_and_from_disk(tmp_path, dtype, codec):
    store = open_store(write(tmp_path, dtype=dtype, codec=codec), num_threads=2)
    feeds = [FeatureFeed(store, preload_bytes=size) for size in (0, 2**30)]
    assert [feed.preloaded for feed in feeds] == [False, True]
    order = epoch_batches(feeds[0].rows, 8, seed=0, epoch=0)
    for one, other, rows in zip(*(feed.batches(order) for feed in feeds), order, strict=True):
        expected = torch.from_numpy(store.read(rows).astype(np.float32))
        assert torch.equal(one.maps, expected) and torch.equal(other.maps, expected)


def test_preloading_keeps_the_stored_form(tmp_path):
    stores = {dtype: open_store(write(tmp_path, dtype=dtype)) for dtype in TYPES}
    values = 50 * int(np.prod(SHAPE))
    for dtype, size in (("int8", 1), ("bfloat16", 2), ("float16", 2), ("float32", 4)):
        expected = values * size + (50 * 16 * 4 if dtype == "int8" else 0)
        assert FeatureFeed(stores[dtype], preload_bytes=expected).preloaded
        assert not FeatureFeed(stores[dtype], preload_bytes=expected - 1).preloaded
        assert preload.PreloadedMaps(stores[dtype], np.arange(50)).stored.nbytes == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "preload_bytes"),
    [("fork", 0), ("fork", 2**30), ("spawn", 2**30), ("forkserver", 0)],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_loader_workers(tmp_path, method, preload_bytes):
    store = open_store(write(tmp_path, dtype="int8"), num_threads=2)
    feed = FeatureFeed(store, preload_bytes=preload_bytes)
    order = epoch_batches(feed.rows, 8, seed=0, epoch=0)
    expected = [batch.maps.clone() for batch in feed.batches(order)]  # Threads, files: all in use.
    loader = DataLoader(
        BatchDataset(feed, order), batch_size=None, num_workers=2, multiprocessing_context=method
    )
    got = list(loader)
    assert len(got) == len(order)
    for batch, rows, maps in zip(got, order, expected, strict=True):
        assert batch.rows.tolist() == rows.tolist()
        assert torch.equal(batch.maps, maps)


def _change_first_value(feed):
    feed._preloaded.stored.maps[0, 0, 0, 0, 0] = 77


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_share_one_copy_of_preloaded_maps(tmp_path, method):
    """What a process changes, the others see: there is one memory."""
    feed = FeatureFeed(open_store(write(tmp_path)), shared=method == "fork")
    context = torch.multiprocessing.get_context(method)
    child = context.Process(target=_change_first_value, args=(feed,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert feed.batch(np.array([0])).maps[0, 0, 0, 0, 0] == 77


def test_too_little_shared_memory_is_told_beforehand(tmp_path, monkeypatch):
    store = open_store(write(tmp_path))
    monkeypatch.setattr(preload, "SHARED_MEMORY", "/proc")  # No file system with free space.
    with pytest.raises(SettingsError, match="0 MiB free, .*--shm-size"):
        FeatureFeed(store, shared=True)
    FeatureFeed(store)


def test_batches_in_use_are_never_overwritten(tmp_path):
    store = open_store(write(tmp_path, shape=(64, 8, 8, 8)))
    feed = FeatureFeed(store, preload_bytes=0, read_ahead=3)
    order = epoch_batches(feed.rows, 8, seed=0, epoch=0)
    kept = [(batch, batch.maps.clone()) for batch in feed.batches(order)]
    assert len({batch.maps.data_ptr() for batch, _ in kept}) == len(order)
    assert all(torch.equal(batch.maps, copy) for batch, copy in kept)


def test_memory_of_dropped_batches_is_used_again_and_no_more_is_held(tmp_path, monkeypatch):
    """Where a piece of memory lies may change, as a busy machine spares and frees; not how many."""
    store = open_store(write(tmp_path, shape=(64, 8, 8, 8)))
    feed = FeatureFeed(store, preload_bytes=0, read_ahead=3)
    given: list[weakref.ref] = []
    give = feed._buffers.empty

    def recorded(shape, dtype):
        array = give(shape, dtype)
        given.append(weakref.ref(array))
        return array

    monkeypatch.setattr(feed._buffers, "empty", recorded)
    order = epoch_batches(feed.rows, 8, seed=0, epoch=0) * 5
    addresses, most = set(), 0
    for batch in feed.batches(order):
        addresses.add(batch.maps.data_ptr())
        most = max(most, sum(array() is not None for array in given))
    assert len(given) == len(order) and 1 < most <= feed.read_ahead + 2
    assert len(addresses) < len(order) / 2


MEASURE = """
import json, sys
import torch
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feed import FeatureFeed, epoch_batches

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

store = open_store(sys.argv[1], num_threads=2)
feed = FeatureFeed(store, preload_bytes=0, read_ahead=int(sys.argv[2]))
feed.batch(feed.rows[:1])  # What torch and numpy load on first use.
before, checksum = peak(), 0.0
for epoch in range(2):
    for batch in feed.batches(epoch_batches(feed.rows, 16, seed=0, epoch=epoch)):
        checksum += float(batch.maps[0, 0, 0, 0, 0])
json.dump({"taken": peak() - before, "bound": feed.bound_bytes(16, num_threads=2)}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_memory_stays_within_the_bound_for_a_store_20_times_larger(tmp_path, codec):
    """A reader that keeps what it has read, or reads ahead without end, takes 20 times this."""
    num_clips, shape = 4800, (64, 8, 8, 8)
    clips = [(f"c{i}", 0, "train") for i in range(num_clips)]
    plan = StorePlan({}, clips, ("a",), shape, samples_per_shard=120, codec=codec)
    with StoreWriter(tmp_path, plan) as writer:
        maps = np.random.default_rng(0).integers(0, 9, (120, *shape)).astype(np.float16)
        for shard in writer.pending_shards():
            writer.write_shard(shard, maps)
        writer.finish({})
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(writer.path), "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(result.stdout)
    assert num_clips * plan.sample_bytes >= 20 * measured["bound"]
    assert measured["taken"] <= measured["bound"] + 2 * 2**20
    assert measured["taken"] > measured["bound"] / 4  # The measurement sees the batches.
