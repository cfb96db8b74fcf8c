"""What is written is what is read, by our reader and by zarr-python."""

from __future__ import annotations

import json
import multiprocessing
import pickle

import numpy as np
import pytest
import zarr

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.feature_store.small_store import (
    FAILURES,
    PROVENANCE,
    make_maps,
    make_plan,
    read_tree,
    write_shard,
    write_store,
)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_read_returns_what_was_written_in_any_order(tmp_path, dtype, codec):
    plan = make_plan(dtype=dtype, codec=codec)
    store = open_store(write_store(tmp_path, plan))
    rows = np.random.default_rng(0).permutation(len(store))
    rows = np.concatenate([rows, rows[:3]])
    maps, exact = store.read(rows), make_maps(plan, store.positions[rows])
    assert maps.dtype == ("float16" if dtype == "float16" else "float32")
    assert maps.shape == (len(rows), *plan.map_shape)
    if dtype.startswith("float"):
        np.testing.assert_array_equal(maps, exact.astype(dtype))
    steps = {"bfloat16": np.abs(exact) / 256, "int8": np.abs(exact).max((2, 3, 4)) / 253}
    if dtype == "bfloat16":
        assert (np.abs(maps - exact) <= steps[dtype]).all()
    elif dtype == "int8":
        assert (np.abs(maps - exact) <= steps[dtype][:, :, None, None, None]).all()


def test_numbers_of_the_frames_used_are_kept(tmp_path):
    frames = [[7 * position, 7 * position + 3][: 1 + position % 2] for position in range(23)]
    store = open_store(write_store(tmp_path, make_plan(frames=frames)))
    for row, position in enumerate(store.positions):
        assert store.frames[row].tolist() == [*frames[position], -1][:2]
    assert open_store(write_store(tmp_path, make_plan())).frames is None


def test_failed_clips_are_no_rows_but_are_listed(tmp_path):
    store = open_store(write_store(tmp_path))
    assert len(store) == 23 - 2
    assert set(range(23)) - set(store.positions) == set(FAILURES)
    assert "clip-6" not in store.video_ids
    assert store.manifest["counts"] == {
        "planned": 23,
        "stored": 21,
        "failed": 2,
        "splits": {"test": {"planned": 8, "stored": 7}, "train": {"planned": 15, "stored": 14}},
    }
    assert store.manifest["failures"][0] == {
        "position": 6,
        "id": "clip-6",
        "split": "train",
        "reason": FAILURES[6],
    }


def test_tables_are_aligned_with_rows(tmp_path):
    store = open_store(write_store(tmp_path))
    for row, position in enumerate(store.positions):
        assert store.video_ids[row] == f"clip-{position}"
        assert store.labels[row] == position % 3
        assert store.splits[row] == ("train" if position < 15 else "test")
    assert store.class_names == ("a", "b", "c")
    assert store.attributes[1] == ("Forward",)
    train, test = store.rows_of_split("train"), store.rows_of_split("test")
    assert sorted([*train, *test]) == list(range(len(store)))
    with pytest.raises(StoreError, match="no map of split 'val'; found: test, train"):
        store.rows_of_split("val")


def test_second_extraction_does_nothing_and_keeps_every_byte(tmp_path):
    path = write_store(tmp_path)
    before = {name: (path / name).stat().st_mtime_ns for name in read_tree(path)}
    with StoreWriter(tmp_path, make_plan()) as writer:
        assert writer.finished and writer.pending_shards() == []
        writer.finish(PROVENANCE | {"version": "1"})
    assert {name: (path / name).stat().st_mtime_ns for name in read_tree(path)} == before


def test_order_of_writing_does_not_matter(tmp_path):
    path = write_store(tmp_path / "a")
    with StoreWriter(tmp_path / "b", make_plan()) as writer:
        for shard in (3, 0, 4, 2, 1):
            write_shard(writer, shard)
        writer.finish(PROVENANCE)
    assert read_tree(writer.path) == read_tree(path)


def test_manifest_is_json_of_documented_keys(tmp_path):
    manifest = json.loads((write_store(tmp_path) / "manifest.json").read_text())
    assert set(manifest) == {
        "array", "counts", "digest", "failures", "files", "fingerprint", "format", "made_of",
        "provenance", "quantization", "saturated", "shards",
    }  # fmt: skip
    assert manifest["provenance"] == PROVENANCE


def test_a_shard_where_every_clip_failed(tmp_path):
    with StoreWriter(tmp_path, make_plan(num_clips=10)) as writer:
        writer.write_shard(0, make_maps(writer.plan, range(5)))
        writer.write_shard(
            1, np.zeros((5, *writer.plan.map_shape)), dict.fromkeys(range(5, 10), "x")
        )
        writer.finish({})
    store = open_store(writer.path)
    assert len(store) == 5
    assert np.isnan(zarr.open_group(store.path, mode="r")["maps"][5:]).all()


def _read_first(store, queue):
    queue.put(store.read([0]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_store_goes_to_other_processes(tmp_path, method):
    store = open_store(write_store(tmp_path))
    expected = store.read([0])
    if method == "spawn":  # What spawn does, without a second interpreter's start.
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read([0]), expected)
        return
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_first, args=(store, queue))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=20), expected)
    process.join()
