"""A store behind a URL reads as on a disk; what goes wrong on the way is mended or named."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import time

import numpy as np
import pytest
from s3fs import S3FileSystem

from dsts_pipeline.base.errors import SettingsError, StoreError
from dsts_pipeline.feature_store import open_store, remote
from tests.feature_store.servers import BUCKET, http_server, s3_server, stalling_proxy, upload
from tests.feature_store.small_store import make_plan, write_store

SHARD = "maps/c.2.0.0.0.0"


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores"), make_plan(num_clips=43))


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.001)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def s3_url(endpoint, monkeypatch, store_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    url = f"s3://{BUCKET}/some/prefix/{store_path.name}"
    upload(store_path, url)
    return url


@pytest.fixture
def served(tmp_path, store_path):
    """A server of a copy of the store, that copy, and its URL."""
    copy = tmp_path / "served" / store_path.name
    shutil.copytree(store_path, copy)
    with http_server(tmp_path / "served") as server:
        yield server, copy, f"{server.url}/{store_path.name}"


@pytest.fixture(params=["s3", "http", "file", "memory"])
def url(request, store_path):
    if request.param == "s3":
        return request.getfixturevalue("s3_url")
    if request.param == "http":
        return request.getfixturevalue("served")[2]
    if request.param == "file":
        return f"file://{store_path}"
    upload(store_path, f"memory://stores/{store_path.name}")
    return f"memory://stores/{store_path.name}"


def open_remote(url, tmp_path, cache_bytes=2**20, **options):
    return open_store(url, cache_dir=tmp_path / "cache", cache_bytes=cache_bytes, **options)


def cached_file(store_path, tmp_path, name=SHARD):
    return tmp_path / "cache" / hashlib.sha256((store_path / name).read_bytes()).hexdigest()


def row_in_shard(store):
    """A row whose map lies in the third shard."""
    return int(np.flatnonzero(store.positions // 5 == 2)[0])


def test_reads_what_the_files_on_a_disk_say(url, store_path, tmp_path):
    local, store = open_store(store_path), open_remote(url, tmp_path, num_threads=2)
    assert (store.fingerprint, store.video_ids) == (local.fingerprint, local.video_ids)
    rows = np.random.default_rng(0).permutation(len(local))
    np.testing.assert_array_equal(store.read(rows), local.read(rows))
    assert store.location == url
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    assert len(sizes) == 1 + 9  # the lock and nine shards


def test_lists_a_folder_instead_of_asking_for_each_file(s3_url, tmp_path, monkeypatch):
    from aiobotocore.client import AioBaseClient

    calls = []
    original = AioBaseClient._make_api_call

    async def count(self, method, arguments):
        calls.append((method, arguments.get("Key", "").rpartition("/")[2]))
        return await original(self, method, arguments)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", count)
    store = open_remote(s3_url, tmp_path)
    assert [method for method, _ in calls].count("ListObjectsV2") == 1
    assert {key for _, key in calls if key} == {"manifest.json", "clips.json", "zarr.json"}
    calls.clear()
    store.read([0])
    assert calls == [("GetObject", "c.0.0.0.0.0")]


def test_every_file_is_downloaded_once(served, tmp_path):
    server, _, url = served
    for _ in range(2):
        store = open_remote(url, tmp_path)
        for row in range(len(store)):
            store.read([row])
    gets = [n for (method, path), n in server.requests.items() if method == "GET" and "/c." in path]
    assert gets == [1] * 9


def test_a_damaged_copy_is_downloaded_again(served, store_path, tmp_path):
    server, _, url = served
    store = open_remote(url, tmp_path)
    row = row_in_shard(store)
    expected = store.read([row])
    cached = cached_file(store_path, tmp_path)
    content = bytearray(cached.read_bytes())
    content[10] ^= 1
    cached.write_bytes(content)
    np.testing.assert_array_equal(store.read([row]), expected)
    assert cached.read_bytes() == (store_path / SHARD).read_bytes()
    assert server.requests["GET", f"/{store_path.name}/{SHARD}"] == 2
    # A copy that was cut off, met by a reader that has not read its index yet.
    cached.write_bytes(content[:100])
    np.testing.assert_array_equal(open_remote(url, tmp_path).read([row]), expected)
    # So too with the index damaged.
    content[10] ^= 1
    content[-20] ^= 1
    cached.write_bytes(content)
    np.testing.assert_array_equal(open_remote(url, tmp_path).read([row]), expected)


def test_damage_on_the_server_is_named(served, tmp_path):
    server, copy, url = served
    store = open_remote(url, tmp_path)
    content = bytearray((copy / SHARD).read_bytes())
    content[10] ^= 1
    (copy / SHARD).write_bytes(content)
    with pytest.raises(StoreError, match="sha256 does not hold.*upload this file again") as error:
        store.read([row_in_shard(store)])
    assert f"{url}/{SHARD}" in str(error.value)
    assert server.requests["GET", f"/{copy.name}/{SHARD}"] == remote.NUM_TRIES
    # Nothing of it stays, and the sound shards can be read.
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    store.read([0])


@pytest.mark.parametrize("kind", ["failures", "cut"])
def test_goes_on_after_a_failing_network(served, store_path, tmp_path, kind):
    server, _, url = served
    path = f"/{store_path.name}/{SHARD}"
    getattr(server, kind)[path] = remote.NUM_TRIES - 1
    store, row = open_remote(url, tmp_path), 12
    np.testing.assert_array_equal(store.read([row]), open_store(store_path).read([row]))
    assert server.requests["GET", path] == remote.NUM_TRIES


@pytest.mark.parametrize("kind", ["failures", "cut"])
def test_a_network_that_stays_down_is_an_error(served, store_path, tmp_path, kind):
    server, _, url = served
    store = open_remote(url, tmp_path)
    getattr(server, kind)[f"/{store_path.name}/{SHARD}"] = 99
    with pytest.raises(StoreError) as error:
        store.read([row_in_shard(store)])
    assert f"{url}/{SHARD}" in str(error.value)
    assert "after 4 of 4 tries" in str(error.value) and "check the address" in str(error.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("stall", ["short", "slow", "silent"])
def test_a_server_that_stalls_is_an_error(served, store_path, tmp_path, stall):
    server, _, url = served
    store = open_remote(url, tmp_path, stall_seconds=0.5)
    path = f"/{store_path.name}/{SHARD}"
    server.stalls[path] = stall
    began = time.monotonic()
    with pytest.raises(StoreError, match="stalled: .* 2 times; .*feed.stall_seconds") as error:
        store.read([row_in_shard(store)])
    assert f"{url}/{SHARD}" in str(error.value)
    assert 1.0 <= time.monotonic() - began < 8
    assert server.requests["GET", path] == 2
    assert [name.name for name in (tmp_path / "cache").iterdir()] == [".lock"]
    del server.stalls[path]
    store.read([row_in_shard(store)])


@pytest.mark.slow
@pytest.mark.parametrize("stall", ["short", "slow", "silent"])
@pytest.mark.parametrize("name", ["manifest.json", "clips.json", SHARD])
def test_a_server_that_stalls_on_opening(served, store_path, tmp_path, stall, name):
    server, _, url = served
    server.stalls[f"/{store_path.name}/{name}"] = stall
    if (name, stall) in ((SHARD, "short"), (SHARD, "slow")):  # nothing but its head is asked for
        open_remote(url, tmp_path, stall_seconds=0.5)
        return
    began = time.monotonic()
    with pytest.raises(StoreError, match=f"{name}: stalled: "):
        open_remote(url, tmp_path, stall_seconds=0.5)
    assert time.monotonic() - began < 8


def test_a_slow_transfer_that_gets_on_is_waited_for(served, store_path, tmp_path):
    """Each half of a file comes after most of the time in which nothing may come."""
    server, _, url = served
    store = open_remote(url, tmp_path, stall_seconds=0.5)  # 500 bytes in so long
    server.pause_seconds = 0.35  # before each 555 of them
    np.testing.assert_array_equal(store.read([12]), open_store(store_path).read([12]))


@pytest.mark.slow
def test_a_bucket_that_stalls_is_an_error(s3_url, endpoint, store_path, tmp_path, monkeypatch):
    with stalling_proxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        S3FileSystem.clear_instance_cache()
        store = open_remote(s3_url, tmp_path, stall_seconds=1.0)
        proxy.is_stalling = True
        began = time.monotonic()
        with pytest.raises(StoreError, match="stalled: .*feed.stall_seconds"):
            store.read([row_in_shard(store)])
        with pytest.raises(StoreError, match="stalled: "):
            open_remote(s3_url, tmp_path / "other", stall_seconds=1.0)
        assert time.monotonic() - began < 40
        proxy.is_stalling = False
        np.testing.assert_array_equal(store.read([12]), open_store(store_path).read([12]))
    S3FileSystem.clear_instance_cache()


def test_no_server_at_all(tmp_path):
    with http_server(tmp_path) as server:
        url = f"{server.url}/store"
    with pytest.raises(StoreError, match="can't be read after 4 of 4 tries"):
        open_remote(url, tmp_path)


@pytest.mark.parametrize("url", ["s3", "file", "memory"], indirect=True)
def test_files_that_lack_are_named_on_opening(url, store_path, tmp_path):
    from fsspec.core import url_to_fs

    if url.startswith("file"):
        shutil.copytree(store_path, tmp_path / "copy")
        url = f"file://{tmp_path}/copy"
    filesystem, root = url_to_fs(url)
    filesystem.rm_file(f"{root}/{SHARD}")
    filesystem.pipe_file(f"{root}/maps/c.1.0.0.0.0", b"short")
    with pytest.raises(StoreError) as error:
        open_remote(url, tmp_path)
    assert "shard 1 (maps/c.1.0.0.0.0) has 5 bytes" in str(error.value)
    assert f"shard 2 ({SHARD}) is missing" in str(error.value)
    filesystem.rm_file(f"{root}/manifest.json")
    with pytest.raises(StoreError, match="no such file, so there is no finished store"):
        open_remote(url, tmp_path)


def test_files_that_lack_are_named_over_http(served, tmp_path):
    _, copy, url = served
    (copy / SHARD).unlink()
    with pytest.raises(StoreError, match=r"shard 2 \(maps/c.2.0.0.0.0\) is missing"):
        open_remote(url, tmp_path)
    (copy / "manifest.json").unlink()
    with pytest.raises(StoreError, match="no such file, so there is no finished store"):
        open_remote(url, tmp_path)


def test_a_cache_smaller_than_a_shard_is_refused(url, tmp_path):
    with pytest.raises(SettingsError, match="feed.cache_bytes is 100 and .* takes"):
        open_remote(url, tmp_path, cache_bytes=100)


def test_addresses_that_are_none(tmp_path):
    with pytest.raises(StoreError, match="can't open such an address"):
        open_remote("nonsense://bucket/store", tmp_path)


def test_a_cache_that_can_not_be_written_to(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't keep downloaded shards here"):
        open_store(served[2], cache_dir=tmp_path / "file" / "cache")


def test_a_smaller_bound_holds_from_the_opening_on(served, tmp_path):
    store = open_remote(served[2], tmp_path)
    store.read(np.arange(len(store)))
    largest = max(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    open_remote(served[2], tmp_path, cache_bytes=2 * largest)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert largest < kept <= 2 * largest


def read_all(store, results, environment):
    os.environ.update(environment)  # A fork server that an earlier test started has an older one.
    results.put(store.read(np.arange(len(store))).sum(dtype=np.float64))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_read_too(s3_url, store_path, tmp_path, method):
    store = open_remote(s3_url, tmp_path)
    expected = store.read(np.arange(len(store))[:3])
    context = multiprocessing.get_context(method)
    results = context.Queue()
    task = {"target": read_all, "args": (store, results, dict(os.environ))}
    processes = [context.Process(**task) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    local = open_store(store_path)
    assert found == [local.read(np.arange(len(local))).sum(dtype=np.float64)] * 2
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read([0, 1, 2]), expected)


def test_compressed_maps_with_scales(tmp_path):
    plan = make_plan(dtype="int8", codec="zstd")
    local = open_store(path := write_store(tmp_path / "served", plan))
    with http_server(tmp_path / "served") as server:
        store = open_remote(f"{server.url}/{path.name}", tmp_path)
        rows = np.arange(len(local))[::-1]
        np.testing.assert_array_equal(store.read(rows), local.read(rows))
    # The lock, and a file of maps and one of scales a shard.
    assert len(list((tmp_path / "cache").iterdir())) == 1 + 2 * plan.num_shards
