"""Preparing: real files are probed, bad ones are listed with reasons, the index survives disk."""

from __future__ import annotations

import json
import os

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import DatasetSettings, RenderSettings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.prepare import prepare_clips
from dsts_pipeline.stick import render_embedded

RENDER = RenderSettings(
    num_train=8, num_test=4, size_px=32, num_frames=5, difficulty=1.0, seed=1, num_workers=1
)


@pytest.fixture
def root(tmp_path):
    render_embedded(tmp_path / "data", RENDER)
    return tmp_path / "data"


def prepare(root, **changes) -> ClipIndex:
    return prepare_clips(DatasetSettings(root=str(root), **changes))[0]


def test_every_good_clip_is_indexed_in_order(root):
    index = prepare(root)
    assert index.count_splits() == {"train": 8, "test": 4} and index.problems == ()
    clip = index.of_split("test")[1]
    assert (clip.id, clip.path, clip.label) == ("stick_test_00001", "rgb/stick_test_00001.mp4", 1)
    assert (clip.num_frames, clip.start_frame, clip.end_frame) == (5, 0, 5)
    assert clip.size_bytes == (root / clip.path).stat().st_size
    assert len(index.class_names) == len(index.attributes) == 48


def test_bad_files_are_listed_with_reasons_and_counted(root):
    (root / "rgb" / "stick_train_00000.mp4").unlink()
    (root / "rgb" / "stick_train_00001.mp4").write_bytes(b"")
    (root / "rgb" / "stick_train_00002.mp4").write_bytes(b"no video at all " * 99)
    cut = root / "rgb" / "stick_test_00003.mp4"
    cut.write_bytes(cut.read_bytes()[:-700])
    index = prepare(root, max_problem_fraction=0.5)
    assert [p.clip_id for p in index.problems] == [
        "stick_train_00000",
        "stick_train_00001",
        "stick_train_00002",
        "stick_test_00003",
    ]
    assert "missing" in index.problems[0].reason
    assert all(problem.reason for problem in index.problems)
    assert index.count_splits() == {"train": 5, "test": 3}


def test_too_many_bad_files_stop_with_their_names(root):
    (root / "rgb" / "stick_train_00000.mp4").unlink()
    with pytest.raises(DataError, match=r"1 of 12 annotated clips .* First: stick_train_00000"):
        prepare(root)


def test_a_split_without_a_usable_clip_stops(root):
    for video in (root / "rgb").glob("stick_test_*.mp4"):
        video.unlink()
    with pytest.raises(DataError, match="no clip of the test split is usable"):
        prepare(root, max_problem_fraction=1.0)


def test_a_link_out_of_the_root_is_refused(root, tmp_path):
    inside = root / "rgb" / "stick_train_00004.mp4"
    outside = tmp_path / "outside.mp4"
    os.replace(inside, outside)
    inside.symlink_to(outside)
    (problem,) = prepare(root, max_problem_fraction=0.5).problems
    assert "leads out of the data root" in problem.reason


def test_end_frame_beyond_the_file_is_cut_and_a_start_beyond_it_is_a_problem(root):
    path = root / "Diving48_V2_train.json"
    items = json.loads(path.read_text())
    items[0]["end_frame"] = 400
    items[1] |= {"start_frame": 99, "end_frame": 120}
    path.write_text(json.dumps(items))
    index = prepare(root, max_problem_fraction=0.5)
    assert index.clips[0].end_frame == 5
    assert index.problems[0].reason == "no frame left: annotated from 99, the file has 5"


def test_index_survives_disk_and_shows_tampering(root, tmp_path):
    index = prepare(root)
    path = tmp_path / "clips.json"
    index.save(path)
    assert ClipIndex.load(path) == index
    first = path.read_bytes()
    ClipIndex.load(path).save(path)
    assert path.read_bytes() == first
    path.write_text(path.read_text().replace('"label": 3', '"label": 4', 1))
    with pytest.raises(DataError, match="digest does not match"):
        ClipIndex.load(path)


def test_digest_follows_content_not_place(root, tmp_path):
    before = prepare(root).digest
    moved = tmp_path / "elsewhere"
    os.replace(root, moved)
    assert prepare(moved).digest == before
    video = moved / "rgb" / "stick_train_00002.mp4"
    video.write_bytes((moved / "rgb" / "stick_train_00003.mp4").read_bytes())
    assert prepare(moved).digest != before


def test_something_else_is_not_an_index(tmp_path):
    (tmp_path / "clips.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a clip index"):
        ClipIndex.load(tmp_path / "clips.json")
