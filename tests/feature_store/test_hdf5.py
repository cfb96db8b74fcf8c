"""One HDF5 file in a store's place: the same answers, in threads and processes, damage seen."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.hdf5 import export_hdf5
from dsts_pipeline.feature_store.verify import check_store
from tests.feature_store.small_store import make_plan, write_store

ATTRIBUTES = ("class_names", "attribute_names", "attributes", "map_shape", "fingerprint", "dtype")
FRAMES = [[position, position + 2] for position in range(23)]


def check(path):
    return check_store(path, fast=False)


@pytest.fixture(params=["float16", "bfloat16", "float32", "int8"])
def store(tmp_path, request):
    plan = make_plan(dtype=request.param, frames=FRAMES)
    return open_store(write_store(tmp_path / "stores", plan))


@pytest.fixture
def half(tmp_path):
    """A float16 store and its file."""
    store = open_store(write_store(tmp_path / "stores"))
    return store, export_hdf5(store, tmp_path / "maps.h5")


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_file_answers_as_the_store_does(store, tmp_path, split):
    file = open_store(export_hdf5(store, tmp_path / "maps.h5", split))
    rows = np.arange(len(store)) if split is None else store.rows_of_split(split)
    assert len(file) == len(rows)
    order = np.random.default_rng(0).permutation(len(rows)).tolist() + [0, 0, 3]
    np.testing.assert_array_equal(file.read(order), store.read(rows[order]))
    np.testing.assert_array_equal(file.labels, store.labels[rows])
    np.testing.assert_array_equal(file.views, store.views[rows])
    np.testing.assert_array_equal(file.splits, store.splits[rows])
    np.testing.assert_array_equal(file.frames, store.frames[rows])
    assert file.video_ids == tuple(store.video_ids[row] for row in rows)
    assert all(getattr(file, name) == getattr(store, name) for name in ATTRIBUTES)
    failed = {None: {"clip-6", "clip-21"}, "train": {"clip-6"}, "test": {"clip-21"}}[split]
    assert {failure["id"] for failure in file.manifest["failures"]} == failed
    planned = {None: 23, "train": 15, "test": 8}[split]
    assert file.manifest["counts"]["planned"] == planned
    with pytest.raises(IndexError):
        file.read([len(file)])


def test_other_tools_find_plain_datasets(store, tmp_path):
    path = export_hdf5(store, tmp_path / "maps.h5")
    with h5py.File(path) as file:
        maps = file["maps"]
        assert maps.chunks == (1, *store.map_shape) and maps.fletcher32
        assert all(item.fletcher32 for item in file.values())
        assert maps.attrs["stored_type"] == store.stored_type
        assert file.attrs["fingerprint"] == store.fingerprint
        np.testing.assert_array_equal(maps[()], store.read_stored(range(21)).maps)
        assert [text.decode() for text in file["ids"][()]] == list(store.video_ids)
        assert file["labels"][()].tolist() == store.labels.tolist()
        assert [text.decode() for text in file["class_names"][()]] == ["a", "b", "c"]
        if store.stored_type == "int8":
            exact = maps[()] * file["scales"][()][:, :, None, None, None]
            np.testing.assert_array_equal(exact.astype(np.float32), store.read(range(21)))


def test_sound_file_is_sound(store, tmp_path):
    verdict = check(export_hdf5(store, tmp_path / "maps.h5"))
    assert not verdict.damage and verdict.num_maps == 21
    assert verdict.values.drift.num_shards == 5
    whole = check(store.path).values.statistics
    assert verdict.values.statistics.to_json() == whole.to_json()


# ---- damage -----------------------------------------------------------------------------------


def test_no_flipped_bit_is_silent(half):
    """Wherever it lies: an error that names the file, or the same answers."""
    store, path = half
    content, chance = path.read_bytes(), random.Random(0)
    expected, told = store.read(range(21)), 0
    for offset in chance.sample(range(len(content)), 500):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :])
        try:
            file = open_store(path)
            maps = file.read(range(21))
        except StoreError as error:
            assert str(path) in str(error) and "again" in str(error)
            told += 1
            continue
        np.testing.assert_array_equal(maps, expected)
        assert file.labels.tolist() == store.labels.tolist() and file.video_ids == store.video_ids
    assert told > 200


def test_damaged_map_is_named_and_the_others_are_checked(half):
    store, path = half
    with h5py.File(path) as file:
        place = file["maps"].id.get_chunk_info(7).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    file = open_store(path)
    file.read([6, 8])
    with pytest.raises(StoreError, match="maps.h5: maps of rows 7 to 7 .*fletcher32"):
        file.read([7])
    verdict = check(path)
    assert [strange.clip for strange in verdict.values.damaged] == [store.video_ids[7]]
    assert verdict.values.statistics.num_maps == 20


def test_damage_to_a_dataset_for_other_tools_is_found(half):
    _, path = half
    with h5py.File(path) as file:
        place = file["labels"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert [problem.file for problem in check(path).problems] == ["labels"]


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_truncated_file(half, kept):
    _, path = half
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(StoreError, match="maps.h5: not a sound HDF5 file"):
        open_store(path)


def test_missing_chunk_is_not_read_as_zeros(half, tmp_path):
    _, path = half
    partial = tmp_path / "partial.h5"
    with h5py.File(path) as source, h5py.File(partial, "w") as target:
        for name in source:
            if name != "maps":
                source.copy(name, target)
        target.attrs.update(source.attrs)
        maps = source["maps"]
        half_full = target.create_dataset("maps", maps.shape, maps.dtype, chunks=maps.chunks)
        half_full[:10] = maps[:10]
    with pytest.raises(StoreError, match="10 of 21 chunks of maps exist"):
        open_store(partial)


def test_file_of_another_kind(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with pytest.raises(StoreError, match="import-features"):
        open_store(tmp_path / "other.h5")
    with pytest.raises(StoreError, match="no such file"):
        open_store(tmp_path / "none.h5")


def test_export_is_whole_or_absent(half, tmp_path, monkeypatch):
    store, path = half
    with pytest.raises(StoreError, match="exists already"):
        export_hdf5(store, path)

    def full(rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "read_stored", full)
    with pytest.raises(StoreError, match=r"b.h5: can't be written .*No space"):
        export_hdf5(store, tmp_path / "b.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps.h5", "stores"]
    with pytest.raises(StoreError, match="no map of split 'val'"):
        export_hdf5(store, tmp_path / "c.h5", "val")


# ---- threads and processes --------------------------------------------------------------------


def test_threads_share_a_file(half):
    store, path = half
    file, expected = open_store(path), store.read(range(21))

    def read(seed):
        rows = np.random.default_rng(seed).permutation(21)
        return bool((file.read(rows) == expected[rows]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


def read_much(file, expected, done):
    for seed in range(50):
        rows = np.random.default_rng(seed).permutation(len(file))
        if not (file.read(rows) == expected[rows]).all():
            os._exit(3)
    done.put(os.getpid())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_read_while_the_parent_does(half, method):
    store, path = half
    file, expected = open_store(path), store.read(range(21))
    file.read([0])  # It is open here.
    context, stop = multiprocessing.get_context(method), threading.Event()

    def keep_reading():
        while not stop.is_set():
            assert (file.read(range(21)) == expected).all()

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        done = context.Queue()
        workers = [context.Process(target=read_much, args=(file, expected, done)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        stop.set()
        thread.join()
    assert (file.read(range(21)) == expected).all(), "closing in a child left the parent's open"


def test_pickle_holds_the_path_alone(half):
    store, path = half
    file = open_store(path)
    file.read([0])
    again = pickle.loads(pickle.dumps(file))
    assert (again.read([3]) == store.read([3])).all()


@pytest.mark.parametrize("how", ["external link", "virtual", "raw data", "unused link"])
def test_data_of_other_files_are_never_read(half, tmp_path, how):
    _, path = half
    other = shutil.copy(path, tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        shape, dtype = file["maps"].shape, file["maps"].dtype
        if how == "unused link":
            file["g/more"] = h5py.ExternalLink(str(other), "/maps")
        else:
            del file["maps"]
        if how == "external link":
            file["maps"] = h5py.ExternalLink(str(other), "/maps")
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(other), "maps", shape, dtype)
            file.create_virtual_dataset("maps", layout)
        elif how == "raw data":
            file.create_dataset("maps", shape, dtype, external=[(str(other), 0, 10**6)])
    told = "link to another file|virtual dataset|data in another file"
    with pytest.raises(StoreError, match=f"(maps|g/more) .*({told}).*which no export writes"):
        open_store(path)
