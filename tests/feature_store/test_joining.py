"""Views joined in time are what np.concatenate makes of them, in every way that a store is read."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.settings import DatasetSettings, FeedSettings
from dsts_pipeline.feature_store import StorePlan, joining, open_store
from dsts_pipeline.feature_store.hdf5 import export_hdf5
from dsts_pipeline.feature_store.joining import follow_head, join_maps, join_views
from dsts_pipeline.feature_store.opening import open_features, record_store
from dsts_pipeline.feature_store.stored_types import STORED_TYPES
from tests.feature_store.segments import (
    CLASSES,
    JOINED_SHAPE,
    LOST,
    SHAPE,
    draw_maps,
    list_clips,
    open_by_hand,
    open_segments,
    write,
)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", STORED_TYPES)
def test_joined_maps_are_the_concatenation(tmp_path, dtype, num_threads, monkeypatch):
    monkeypatch.setattr(joining, "JOINED_BYTES", 2000)  # a few maps at a time
    store = open_segments(tmp_path, dtype=dtype, num_threads=num_threads)
    joined = join_views(store)
    separate = store.read(np.arange(len(store))).copy()
    assert (len(joined), joined.map_shape, joined.num_joined) == (24, JOINED_SHAPE, 2)
    for split in ("train", "test"):
        for row in joined.rows_of_split(split):
            clip, view = joined.video_ids[row], joined.views[row]
            rows = store.rows_of_clip(clip)
            first, second = rows[2 * view], rows[2 * view + 1]
            expected = np.concatenate([separate[first], separate[second]], axis=1)
            found = joined.read([row])
            assert found.dtype == store.dtype
            np.testing.assert_array_equal(found[0], expected)
            assert joined.labels[row] == store.labels[first]
            assert joined.splits[row] == split
            frames = [*store.frames[first], *store.frames[second]]
            assert joined.frames[row].tolist() == frames
            tensor, label = joined[row]
            assert torch.equal(tensor, torch.from_numpy(expected.astype(np.float32)))
            assert label == joined.labels[row]
    rows = [5, 0, 5, 23, 7]
    whole = joined.read(rows).copy()
    np.testing.assert_array_equal(whole, np.stack([joined.read([row])[0] for row in rows]))
    out = np.empty_like(whole)
    assert np.shares_memory(joined.read(rows, out), out)
    np.testing.assert_array_equal(out, whole)
    with pytest.raises(ValueError, match="expected contiguous"):
        joined.read(rows, out.reshape(5, 12, 2, 3, 4))
    assert joined.read([]).shape == (0, *JOINED_SHAPE)
    assert joined.sample_bytes == 2 * store.sample_bytes


def test_a_joined_store_is_read_by_threads_and_processes(tmp_path):
    joined = join_views(open_segments(tmp_path, num_threads=2, dtype="int8"))
    expected = joined.read(np.arange(24)).copy()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: joined.read([row])[0].copy(), list(range(24)) * 3))
    np.testing.assert_array_equal(np.stack(found), np.concatenate([expected] * 3))
    sent = pickle.loads(pickle.dumps(joined))
    np.testing.assert_array_equal(sent.read(np.arange(24)), expected)
    joined.verify()


def test_a_remote_store_is_joined_too(tmp_path):
    store = open_segments(tmp_path / "far", failures={LOST: "truncated"})
    found = open_store(f"file://{store.path}", cache_dir=tmp_path / "near")
    rows = np.arange(23)
    np.testing.assert_array_equal(join_views(found).read(rows).copy(), join_views(store).read(rows))


def test_a_map_without_one_of_its_segments_is_left_out_and_counted(tmp_path):
    gone = {LOST: "truncated", 16: "no frames", 17: "no frames", 18: "cut", 19: "cut"}
    store = open_segments(tmp_path, failures=gone)
    joined = join_views(store)
    assert len(joined) == 21 and joined.manifest["counts"] == {
        "planned": 24,
        "stored": 21,
        "failed": 3,
        "splits": {
            "test": {"planned": 8, "stored": 7},
            "train": {"planned": 16, "stored": 14},
        },
    }
    assert joined.manifest["failures"] == [
        {"id": "c2", "position": LOST, "split": "test", "reason": "segment 1 of 2: truncated"},
        {"id": "c4", "position": 16, "split": "train", "reason": "segment 1 of 2: no frames"},
        {"id": "c4", "position": 18, "split": "train", "reason": "segment 1 of 2: cut"},
    ]
    assert joined.rows_of_clip("c2").tolist() == [4] and "c4" not in joined.video_ids
    with pytest.raises(StoreError, match="'c4' has no map: segment 1 of 2: no frames"):
        joined.rows_of_clip("c4")
    by_hand = open_by_hand(tmp_path / "hand", store, lost=(LOST // 2, 8, 9))
    np.testing.assert_array_equal(
        joined.read(np.arange(21)).astype(np.float32), by_hand.read(np.arange(21))
    )
    assert joined.video_ids == by_hand.video_ids
    assert store.manifest["counts"]["failed"] == 5, "the store itself is as it was"


def test_what_is_trained_on_joined_maps_has_another_name(tmp_path):
    plain = open_segments(tmp_path / "plain")
    assert join_views(plain).division == f"{plain.division}-joined"
    assert join_views(plain).fingerprint == plain.fingerprint
    assert plain.describe_reading() == {}
    assert join_views(plain).describe_reading() == {"joined_views": 2}
    for joined_views, views in ((1, "separate"), (4, "joined")):
        record = {"joined_views": joined_views}
        assert follow_head(FeedSettings(views="joined"), record).views == views
    assert follow_head(FeedSettings(views="joined"), {}).views == "separate"

    grouped = open_segments(tmp_path / "grouped", groups=[f"g{n % 5}" for n in range(12)])
    before = grouped.division  # group numbers of separate rows are known from here on
    joined = join_views(grouped)
    assert len(joined.group_numbers) == len(joined) == 24
    assert joined.division not in (before, grouped.fingerprint)
    assert joined.division.startswith(f"{grouped.fingerprint}-joined-")


def test_folds_are_dealt_of_joined_maps(tmp_path):
    made_of = {"views": {"train": 1, "test_clips": 1, "test_crops": 1, "segments": 4}}
    store = open_segments(
        tmp_path, 12, made_of=made_of, groups=[f"g{n}" for n in range(12)], failures={8: "cut"}
    )
    record = tmp_path / "features.json"
    write_json(record, record_store(store.manifest, store.path))
    feed = FeedSettings(views="joined")
    dataset = DatasetSettings(num_folds=3, fold=1)
    folded = open_features(record, feed, dataset)
    assert (folded.num_joined, len(folded)) == (4, 11)
    assert set(folded.splits) == {"train", "test"}
    assert folded.manifest["failures"][0]["reason"] == "segment 1 of 4: cut"
    np.testing.assert_array_equal(folded.read([0])[0], np.concatenate(store.read(range(4)), axis=1))
    assert open_features(record, FeedSettings()).num_joined == 1
    assert set(folded.describe_reading()) == {"fold", "joined_views"}
    with pytest.raises(ValueError, match="as `open_store` gives it"):
        join_views(folded)


def test_an_exported_file_is_joined_like_its_store(tmp_path):
    store = open_segments(tmp_path, failures={LOST: "truncated", 17: "cut"})
    exported = open_store(export_hdf5(store, tmp_path / "maps.h5"))
    joined = join_views(exported)
    expected = join_views(store)
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(joined.read(rows).copy(), expected.read(rows))
    assert joined.video_ids == expected.video_ids
    reasons = [failure["reason"] for failure in joined.manifest["failures"]]
    assert reasons == ["segment 1 of 2: truncated", "segment 2 of 2: cut"]
    with pytest.raises(ValueError, match="export the store as it is"):
        export_hdf5(expected, tmp_path / "joined.h5")


def test_of_imported_maps_all_views_of_a_clip_are_joined(tmp_path):
    store = open_segments(tmp_path, made_of={"import": {"content": "x"}})
    joined = join_views(store)
    assert (len(joined), joined.map_shape) == (12, (6, 8, 3, 4))
    for row in (0, 7):
        parts = store.read(store.rows_of_clip(f"c{row}")).copy()
        np.testing.assert_array_equal(joined.read([row])[0], np.concatenate(parts, axis=1))


def test_what_cannot_be_joined_is_refused(tmp_path):
    with pytest.raises(DataError, match="one view in time; extract with backbone.views.segments"):
        join_views(open_segments(tmp_path / "old", made_of={}))
    clips = [*list_clips(2, 4)[:6], ("c9", 0, "test", 0)]

    def open_odd(name: str, clips: list, made_of: dict):
        plan = StorePlan(made_of, clips, CLASSES, SHAPE, samples_per_shard=4)
        return open_store(write(tmp_path / name, plan, draw_maps(len(clips)), {}))

    with pytest.raises(DataError, match="clip c1 has 2 views, others 4; joined maps need"):
        join_views(open_odd("imported", clips, {"import": {}}))
    with pytest.raises(DataError, match=r"clip c9 are numbered \[0\], expected from 0 on in gro"):
        join_views(open_odd("cut", clips, {"views": {"segments": 2}}))
    labelled = [("c0", view, "train", view) for view in range(2)]
    with pytest.raises(DataError, match="clip c0 have different classes"):
        join_views(open_odd("mirrored", labelled, {"views": {"segments": 2}}))


def test_damage_is_told_as_of_separate_maps(tmp_path):
    store = open_segments(tmp_path)
    shard = sorted((store.path / "maps").glob("c.*"))[1]
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    shard.write_bytes(content)
    joined = join_views(open_store(store.path))
    with pytest.raises(StoreError, match="shard 1"):
        joined.read([4])
    joined.read([0])


def test_maps_in_memory_are_joined_alike():
    maps = draw_maps(6)
    joined = join_maps(maps, 3)
    np.testing.assert_array_equal(joined[1], np.concatenate(maps[3:], axis=1))
    np.testing.assert_array_equal(join_maps(maps, 1), maps)
