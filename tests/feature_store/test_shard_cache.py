"""The cache of shards keeps its bound at every moment, with several processes and after kills."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dsts_pipeline.base.errors import SettingsError, StoreError
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.remote import ShardCache, Sink, WrongContent
from tests.feature_store.servers import http_server
from tests.feature_store.small_store import make_plan, write_store

NUM_BYTES = 1000
CONTENTS = {
    hashlib.sha256(content).hexdigest(): content
    for content in (bytes([number]) * NUM_BYTES for number in range(8))
}
DIGESTS = list(CONTENTS)


def fetch(cache, digest, log=None, content=None):
    def download(sink):
        if log is not None:
            log.append(digest)
        sink.write(CONTENTS[digest] if content is None else content)

    descriptor = cache.open(digest, NUM_BYTES, download)
    try:
        return os.pread(descriptor, NUM_BYTES + 1, 0)
    finally:
        os.close(descriptor)


def taken_bytes(folder):
    """Disk space and lengths of what is in the cache, whichever is more, read at one go."""
    total = 0
    for entry in os.scandir(folder):
        try:
            stat = entry.stat()
        except FileNotFoundError:
            continue
        if entry.name != ".lock":
            total += stat.st_size
    return total


class Watch:
    """Looks at a folder all the time, and keeps the most bytes that it saw there."""

    def __init__(self, folder):
        self.folder, self.most, self.num_looks = folder, 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        import fcntl

        # Under the cache's own lock: a rename between two entries would be counted twice.
        with open(self.folder / ".lock", "ab") as lock:
            while not self._done.is_set():
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.most = max(self.most, taken_bytes(self.folder))
                fcntl.flock(lock, fcntl.LOCK_UN)
                self.num_looks += 1
                time.sleep(0.0005)

    def __enter__(self):
        self.folder.mkdir(exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def test_downloads_once_and_keeps_the_content(tmp_path):
    cache, log = ShardCache(tmp_path, 3 * NUM_BYTES), []
    for _ in range(3):
        assert fetch(cache, DIGESTS[0], log) == CONTENTS[DIGESTS[0]]
    assert log == DIGESTS[:1]


def test_the_least_recently_opened_goes_first(tmp_path):
    cache = ShardCache(tmp_path, 3 * NUM_BYTES + 1)
    for digest in (*DIGESTS[:3], DIGESTS[0], DIGESTS[3]):
        time.sleep(0.01)
        fetch(cache, digest)
    kept = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert kept == {DIGESTS[0], DIGESTS[2], DIGESTS[3]}


def test_an_open_file_outlives_its_deletion(tmp_path):
    cache = ShardCache(tmp_path, NUM_BYTES)
    descriptor = cache.open(DIGESTS[0], NUM_BYTES, lambda sink: sink.write(CONTENTS[DIGESTS[0]]))
    fetch(cache, DIGESTS[1])
    assert {path.name for path in tmp_path.iterdir()} == {".lock", DIGESTS[1]}
    assert os.pread(descriptor, NUM_BYTES, 0) == CONTENTS[DIGESTS[0]]
    os.close(descriptor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * NUM_BYTES, "sha256 does not hold"),
        (b"x" * 999, "ended after 999 of 1000 bytes"),
        (b"x" * 1001, "has more than the 1000 bytes"),
    ],
)
def test_wrong_content_never_stays(tmp_path, content, message):
    cache = ShardCache(tmp_path, NUM_BYTES)
    with pytest.raises(WrongContent, match=message):
        fetch(cache, DIGESTS[0], content=content)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert fetch(cache, DIGESTS[0]) == CONTENTS[DIGESTS[0]]


def test_too_small_a_cache(tmp_path):
    with pytest.raises(SettingsError, match="feed.cache_bytes is 999 .* takes 1000 bytes"):
        fetch(ShardCache(tmp_path, 999), DIGESTS[0])


def test_a_full_disk_is_told(tmp_path):
    class Full:
        name = str(tmp_path / "part")

        def write(self, block):
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left on device.*set feed.cache_dir"):
        Sink(Full(), 10).write(b"123")


def test_threads_share_one_download_and_wait_for_room(tmp_path):
    cache, log = ShardCache(tmp_path / "cache", 2 * NUM_BYTES), []

    def slowly(number):
        digest = DIGESTS[number % 5]

        def download(sink):
            log.append(digest)
            sink.write(CONTENTS[digest][:500])
            time.sleep(0.002)
            sink.write(CONTENTS[digest][500:])

        descriptor = cache.open(digest, NUM_BYTES, download)
        content = os.pread(descriptor, NUM_BYTES, 0)
        os.close(descriptor)
        return content == CONTENTS[digest]

    with Watch(tmp_path / "cache") as watch, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(slowly, [0] * 8))
        assert log == DIGESTS[:1]
        assert all(pool.map(slowly, range(60)))
    assert 0 < watch.most <= 2 * NUM_BYTES


def hang(folder, digest, started):
    def download(sink):
        sink.write(CONTENTS[digest][:100])
        started.set()
        time.sleep(60)

    ShardCache(folder, 2 * NUM_BYTES).open(digest, NUM_BYTES, download)


@pytest.mark.parametrize("other", [False, True])
def test_what_a_killed_process_left_is_cleared(tmp_path, other):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=hang, args=(tmp_path, DIGESTS[0], started))
    process.start()
    assert started.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / f"{DIGESTS[0]}.part").stat().st_size == NUM_BYTES
    cache = ShardCache(tmp_path, 2 * NUM_BYTES)
    # Of the same digest, or of one that needs all the room there is.
    for digest in DIGESTS[1:3] if other else DIGESTS[:2]:
        assert fetch(cache, digest) == CONTENTS[digest]
    assert not list(tmp_path.glob("*.part"))


def test_a_process_forked_in_mid_download_holds_nobody_up(tmp_path):
    cache, forked = ShardCache(tmp_path, 2 * NUM_BYTES), []

    def download(sink):
        forked.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)))
        forked[0].start()
        waiter.start()
        time.sleep(0.1)
        sink.write(CONTENTS[DIGESTS[0]])

    waiter = threading.Thread(target=fetch, args=(cache, DIGESTS[0]))
    os.close(cache.open(DIGESTS[0], NUM_BYTES, download))
    waiter.join(timeout=10)
    finished = not waiter.is_alive()
    forked[0].kill()
    forked[0].join()
    waiter.join()
    assert finished


def read_rows(url, folder, num_bytes, seed, results):
    store = open_store(url, cache_dir=folder, cache_bytes=num_bytes, num_threads=2)
    total = 0.0
    for rows in np.array_split(np.random.default_rng(seed).permutation(len(store)), 10):
        total += float(store.read(rows).astype(np.float64).sum())
    results.put(total)


def test_the_bound_holds_for_a_store_five_times_larger(tmp_path):
    plan = make_plan(num_clips=100, map_shape=(8, 2, 8, 8))
    path = write_store(tmp_path / "served", plan)
    local = open_store(path)
    shard_bytes = max(entry.stat().st_size for entry in path.glob("maps/c.*"))
    bound = 4 * shard_bytes
    assert sum(entry.stat().st_size for entry in path.glob("maps/c.*")) > 4.9 * bound
    expected = float(local.read(np.arange(len(local))).astype(np.float64).sum())
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    folder = tmp_path / "cache"
    with http_server(tmp_path / "served") as server, Watch(folder) as watch:
        arguments = [(f"{server.url}/{path.name}", folder, bound, seed, results) for seed in (0, 1)]
        processes = [context.Process(target=read_rows, args=each) for each in arguments]
        for process in processes:
            process.start()
        found = [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
    assert found == pytest.approx([expected] * 2, abs=1e-6)
    assert shard_bytes < watch.most <= bound
    assert watch.num_looks > 50
