"""A store as a dataset of torch: items, batches in one read, workers, parts, pickling."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import open_store
from tests.feature_store.small_store import FAILURES, make_maps, make_plan, write_store


@pytest.fixture
def store(tmp_path):
    return open_store(write_store(tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_an_item_is_map_and_class(tmp_path, dtype):
    plan = make_plan(dtype=dtype)
    store = open_store(write_store(tmp_path, plan))
    assert len(store) == 23 - len(FAILURES)
    exact = make_maps(plan, store.positions)
    for row in (0, 7, len(store) - 1):
        maps, label = store[row]
        assert maps.dtype == torch.float32 and maps.shape == store.map_shape
        torch.testing.assert_close(maps, torch.from_numpy(exact[row]), atol=0.03, rtol=0.01)
        assert label == store.positions[row] % 3 and isinstance(label, int)


def test_rows_are_those_of_a_list(store):
    rows = list(range(len(store)))
    for row in (-1, -len(store), np.int64(3), torch.tensor(2)):
        torch.testing.assert_close(store[row][0], store[rows[row]][0], rtol=0, atol=0)
    for row in (len(store), -len(store) - 1):
        with pytest.raises(IndexError, match="row -?2[12], have 21"):
            store[row]
    for wrong in (slice(2), 1.0, "0", [1, 2]):
        with pytest.raises(TypeError, match=r"torch.utils.data.Subset\(store, rows\)"):
            store[wrong]
    assert [label for _, label in store] == store.labels.tolist()  # ends by itself


def test_a_batch_is_one_read(store, monkeypatch):
    calls = []
    read = store.source.read_into
    monkeypatch.setattr(
        store.source, "read_into", lambda rows, *out: calls.append(len(rows)) or read(rows, *out)
    )
    (maps, labels), *_ = DataLoader(Subset(store, store.rows_of_split("train")), batch_size=8)
    assert calls == [8, 6] and maps.shape == (8, *store.map_shape)
    assert labels.dtype == torch.int64
    assert store.__getitems__([]) == []


def test_a_clip_that_failed_is_no_item(store):
    failed = {f"clip-{position}" for position in FAILURES}
    assert len(store.video_ids) == len(store) and failed.isdisjoint(store.video_ids)


def test_damage_is_an_error_and_never_a_map(store):
    shard = sorted((store.path / "maps" / "c").parent.glob("c.*"))[0]
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(byte ^ 0xFF for byte in content[: len(content) // 2])
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="c.0"):
        open_store(store.path)[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_process_reads(store, start):
    expected = torch.from_numpy(store.read(range(len(store)))).float()
    loader = DataLoader(store, batch_size=4, num_workers=2, multiprocessing_context=start)
    parts = list(loader)
    torch.testing.assert_close(torch.cat([maps for maps, _ in parts]), expected, rtol=0, atol=0)
    assert torch.cat([labels for _, labels in parts]).tolist() == store.labels.tolist()


def test_parts_and_copies(store):
    sizes = [len(part) for part in random_split(store, [0.5, 0.5], torch.Generator())]
    assert sizes == [11, 10]
    both = ConcatDataset([store, store])
    torch.testing.assert_close(both[-1][0], store[-1][0], rtol=0, atol=0)
    copy = pickle.loads(pickle.dumps(store))
    torch.testing.assert_close(copy[5][0], store[5][0], rtol=0, atol=0)


def test_items_stay_as_they_are(tmp_path):
    store = open_store(write_store(tmp_path, make_plan(map_shape=(64, 8, 16, 16))))
    first, _ = store[0]
    expected = first.clone()
    for row in range(1, 6):  # memory of dropped maps is used again, that of held ones never
        store[row]
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
