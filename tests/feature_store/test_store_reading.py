"""Reading: any order, type, number of threads, process; bounded files; memory used again."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import zarr

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import sign
from dsts_pipeline.feature_store import open_store, reader
from dsts_pipeline.feature_store.files import LocalFiles
from dsts_pipeline.feature_store.hdf5 import export_hdf5
from dsts_pipeline.feature_store.shards import Descriptors
from tests.feature_store.small_store import make_maps, make_plan, read_tree, write_store

FORMS = [
    {"dtype": dtype, "codec": codec}
    for dtype in ("float16", "bfloat16", "float32", "int8")
    for codec in ("none", "zstd")
]
by_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
# Largest error relative to the map's largest value: half a unit in the last place.
ERROR = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0, "int8": 0.5 / 127}


@by_form
@pytest.mark.parametrize("num_threads", [1, 3])
def test_all_types_and_codecs_in_any_order(tmp_path, form, num_threads):
    plan = make_plan(**form)
    store = open_store(write_store(tmp_path, plan), num_threads=num_threads)
    rows = np.random.default_rng(0).integers(0, len(store), 50)
    maps, exact = store.read(rows), make_maps(plan, store.positions[rows])
    assert maps.dtype == store.dtype == ("float16" if form["dtype"] == "float16" else "float32")
    assert np.abs(maps - exact).max() <= ERROR[form["dtype"]] * np.abs(exact).max()
    stored = store.read_stored(rows)
    np.testing.assert_array_equal(stored.to_float(), maps)
    np.testing.assert_array_equal(stored[10:13].to_float(), maps[10:13])
    assert stored.nbytes == len(rows) * store.sample_bytes


@by_form
def test_reading_into_given_memory(tmp_path, form):
    store = open_store(write_store(tmp_path, make_plan(**form)))
    out = np.full((4, *store.map_shape), 7, dtype=store.dtype)
    assert store.read([3, 1, 4, 1], out) is out
    np.testing.assert_array_equal(out, store.read([3, 1, 4, 1]))
    for wrong in (out[:3], out.astype(np.float64), np.swapaxes(out, 3, 4)):
        with pytest.raises(ValueError, match="out is"):
            store.read_stored([3, 1, 4, 1], wrong)


def test_one_call_reads_neighbouring_maps(tmp_path, monkeypatch):
    store = open_store(write_store(tmp_path))
    store.read(range(21))
    calls, read = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *call: calls.append(call) or read(*call))
    store.read(range(21))  # Four gaps: between five shards; failed clips leave none.
    assert len(calls) == 5
    calls.clear()
    store.read([0, 2, 4, 2])
    assert len(calls) == 4


def test_memory_of_dropped_batches_is_used_again_and_that_of_others_never(tmp_path):
    store = open_store(write_store(tmp_path, make_plan(map_shape=(64, 8, 16, 16))))
    first = store.read(range(8))
    kept, expected = first[2:3, 5], first[2:3, 5].copy()
    place = first.__array_interface__["data"]
    second = store.read(range(8, 16))
    assert second.__array_interface__["data"] != place
    del first
    gc.collect()
    assert store.read(range(8, 16)).__array_interface__["data"] != place  # A view is left.
    np.testing.assert_array_equal(kept, expected)
    del kept
    assert store.read(range(7)).__array_interface__["data"] == place


def test_open_files_are_bounded(tmp_path):
    store = open_store(write_store(tmp_path, make_plan(num_clips=800)))  # 160 shards
    before = len(os.listdir("/proc/self/fd"))
    store.read(range(len(store)))
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    del store
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_not_closed_under_its_reader(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    local = LocalFiles(tmp_path)
    local.num_open = 1
    files = Descriptors(local)
    with files.borrow("a") as first:
        with files.borrow("b"), files.borrow("c"):
            assert len(files._open) == 1
        assert os.pread(first, 1, 0) == b"a"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(first, 1, 0)
    with pytest.raises(FileNotFoundError), files.borrow("none"):
        pass


def test_threads_share_a_store(tmp_path):
    store = open_store(write_store(tmp_path), num_threads=2)
    expected, wrong = store.read(range(21)), []

    def read(seed):
        for rows in np.random.default_rng(seed).integers(0, 21, (50, 6)):
            if not np.array_equal(store.read(rows), expected[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _read_in_child(store, results):
    results.put(store.read(range(20, -1, -1)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_store_in_use_goes_to_other_processes(tmp_path, method):
    """Open files, threads and memory are there when the parent forks or pickles its store."""
    store = open_store(write_store(tmp_path, make_plan(map_shape=(64, 8, 8, 8))), num_threads=2)
    expected = store.read(range(21))
    context = multiprocessing.get_context(method)
    results = context.Queue()
    children = [context.Process(target=_read_in_child, args=(store, results)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        np.testing.assert_array_equal(results.get(timeout=60), expected[::-1])
    np.testing.assert_array_equal(store.read(range(21)), expected)
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def test_pickles_are_small_and_hold_no_open_file(tmp_path):
    store = open_store(write_store(tmp_path, make_plan(map_shape=(64, 8, 16, 16))))
    store.read(range(21))
    pickled = pickle.dumps(store)
    assert len(pickled) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickled).read([5]), store.read([5]))


def test_frames_belong_to_rows(tmp_path):
    frames = [list(range(position, position + 1 + position % 4)) for position in range(23)]
    store = open_store(write_store(tmp_path, make_plan(frames=frames)))
    assert store.frames is not None and store.frames.shape == (21, 4)
    for row, position in enumerate(store.positions):
        expected = frames[position] + [-1] * (4 - len(frames[position]))
        assert store.frames[row].tolist() == expected
    assert open_store(write_store(tmp_path)).frames is None


def test_rows_of_a_clip(tmp_path):
    clips = [(f"dive-{clip}", 0, "train", view) for clip in range(8) for view in (0, 1)]
    store = open_store(write_store(tmp_path, make_plan(clips=clips, num_clips=16)))
    assert store.rows_of_clip("dive-2").tolist() == [4, 5]
    with pytest.raises(StoreError, match="no clip 'dive2' among its 15 maps; .* 'dive-2'"):
        store.rows_of_clip("dive2")
    failing = open_store(write_store(tmp_path))
    with pytest.raises(StoreError, match="'clip-6' has no map: can't be decoded: no frames"):
        failing.rows_of_clip("clip-6")


# ---- arrays that another program wrote --------------------------------------------------------


def rewrite(path, **options):
    """Write `maps` anew by zarr-python and make the manifest vouch for what it wrote."""
    from hashlib import sha256

    group = zarr.open_group(path, mode="a")
    maps = group["maps"][:]
    del group["maps"]
    array = group.create_array("maps", shape=maps.shape, dtype=maps.dtype, **options)
    array[:] = maps
    content = {f"maps/{name}": data for name, data in read_tree(path / "maps").items()}
    manifest = json.loads((path / "manifest.json").read_text())
    entries = {
        name: {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        for name, data in content.items()
    }
    manifest["files"]["maps/zarr.json"] = entries.pop("maps/zarr.json")
    manifest["shards"] = [{"files": [{"file": name} | entries[name]]} for name in sorted(entries)]
    (path / "manifest.json").write_text(json.dumps(sign(manifest)))


CHECKED = [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]
FOREIGN = {
    "gzip": {"chunks": (1, 3, 2, 4, 4), "shards": (5, 3, 2, 4, 4), "compressors": CHECKED},
    "blosc": {"chunks": (1, 3, 2, 4, 4), "compressors": [zarr.codecs.BloscCodec()]},
    "four maps a chunk": {"chunks": (4, 3, 2, 4, 4), "compressors": None},
    "as zarr-python would": {"chunks": (1, 3, 2, 4, 4), "shards": (5, 3, 2, 4, 4)},
}


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN.keys())
def test_arrays_of_other_programs_are_read_with_a_note(tmp_path, options):
    path = write_store(tmp_path)
    expected = open_store(path).read(range(21))
    rewrite(path, **options)
    with pytest.warns(
        UserWarning, match="read through zarr-python, slowly, since it has maps/zarr"
    ):
        store = open_store(path)
    np.testing.assert_array_equal(store.read(range(20, -1, -1)), expected[::-1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read([3]), expected[3:4])


@pytest.mark.filterwarnings("ignore:.*read through zarr-python")
def test_damage_in_arrays_of_other_programs(tmp_path):
    path = write_store(tmp_path)
    rewrite(path, **FOREIGN["gzip"])
    file = path / "maps/c/2/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content)
    store = open_store(path)
    rows = [row for row, position in enumerate(store.positions) if position // 5 == 2]
    with pytest.raises(StoreError, match="maps/c/2/0/0/0/0 can't be read .* `python cli.py extra"):
        store.read(rows)
    file.unlink()
    with pytest.raises(StoreError, match="shard 2 .maps/c/2/0/0/0/0. is missing"):
        open_store(path)


def test_memory_of_a_whole_split_is_not_kept(tmp_path, monkeypatch):
    store = open_store(write_store(tmp_path, make_plan(map_shape=(64, 8, 16, 16))))
    monkeypatch.setattr(reader, "_LARGEST_KEPT", 2**21)
    store.read(range(4))
    assert len(store._buffers._spare) == 1
    for _ in range(5):
        store.read(range(21))
    assert sum(memory.nbytes for memory in store._buffers._spare) <= 2**21


def test_verify_reads_all_of_an_exported_file(tmp_path):
    store = open_store(write_store(tmp_path))
    store.verify()
    file = tmp_path / "maps.h5"
    export_hdf5(store, file)
    open_store(file).verify()
    content = bytearray(file.read_bytes())
    place = content.index(store.read([20]).tobytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="maps.h5"):
        open_store(file).verify()
