"""What `prepare` says of a data set: duplicates, leaks, unused classes, extra files, counts."""

from __future__ import annotations

import json
import shutil

import pytest
from rich.console import Console

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.settings import DatasetSettings
from dsts_pipeline.clips.index import Clip, ClipIndex, Problem
from dsts_pipeline.clips.prepare import RefusedClipsError, _find_unusable, prepare_clips
from tests.clips.test_ssv2 import LABELS, MOVE, PRETEND, PUT, write_root
from tests.clips.videos import write_video


def prepare(root, kind="csv", **changes):
    changes = {"max_problem_fraction": 1.0} | changes
    return prepare_clips(DatasetSettings(name="mine", format=kind, root=str(root), **changes))


def write_table(root, *lines, header="path,label,split"):
    (root / "annotations.csv").write_text("\n".join([header, *lines]))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six different videos of 3 to 8 frames, 24 frames a second."""
    folder = tmp_path_factory.mktemp("videos")
    for n in range(6):
        write_video(folder / f"{n}.mp4", num_frames=3 + n, size=(32, 32), seed=n)
    return folder


@pytest.fixture
def root(tmp_path, videos):
    shutil.copytree(videos, tmp_path / "data")
    return tmp_path / "data"


def test_a_sound_data_set_gives_no_table(root):
    write_table(root, *(f"{n}.mp4,{'ab'[n % 2]},{'train' if n < 4 else 'test'}" for n in range(6)))
    index, findings = prepare(root)
    assert findings.rows() == [] and findings.table() is None and findings.lines() == []
    clip = index.clips[2]
    assert (clip.fps, clip.width_px, clip.height_px, clip.codec) == (24.0, 32, 32, "h264")
    assert clip.duration_seconds == pytest.approx(5 / 24)
    assert findings.usable == findings.annotated == {"train": 4, "test": 2}
    assert (findings.codecs, findings.sizes_px, findings.frame_rates) == (
        {"h264": 6},
        {"32 x 32": 6},
        {"24": 6},
    )
    assert findings.total_seconds == pytest.approx(33 / 24, abs=1e-3)


def test_everything_worth_a_look_is_listed(root, tmp_path):
    shutil.copy(root / "0.mp4", root / "copy.mp4")
    shutil.copy(root / "1.mp4", root / "leak.mp4")
    (root / "extra").mkdir()
    shutil.copy(root / "5.mp4", root / "extra" / "Ärger.mp4")
    (root / "empty.mp4").touch()
    (root / "out.mp4").symlink_to(shutil.copy(root / "5.mp4", tmp_path / "out.mp4"))
    rows = "0 copy 1 2 empty gone out".split()
    train = [f"{name}.mp4,a,train,,," for name in rows]
    write_table(
        root,
        *train,
        "3.mp4,b,train,,3,400",
        "leak.mp4,a,test,,,",
        "2.mp4,c,test,,0,2",
        "4.mp4,a,train,same,,",
        "5.mp4,a,test,same,,",
        header="path,label,split,id,start_frame,end_frame",
    )
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    index, findings = prepare(root, min_frames=3)
    assert findings.problems == {
        "unreadable": ("train/empty",),
        "missing": ("train/gone",),
        "outside": ("train/out",),
        "too short": ("test/2@0-2",),
    }
    assert {p.clip_id: p.reason for p in index.problems}["2@0-2"] == (
        "2 frames, fewer than dataset.min_frames = 3"
    )
    assert findings.duplicates == (("train/0", "train/copy"), ("train/1", "test/leak"))
    assert findings.in_several_splits == (("train/same", "test/same"), ("train/1", "test/leak"))
    assert findings.classes_without_clips == ("d",)
    assert findings.classes_without == {"train": ("c",), "test": ("b", "c")}
    assert findings.extra_videos == ("extra/Ärger.mp4",)
    assert findings.cut_ranges == ("train/3@3-400",)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(findings.table())
    shown = console.export_text()
    assert "videos that no annotation names" in shown and "train/1 = test/leak" in shown
    write_json(tmp_path / "check.json", findings.as_json())
    stored = json.loads((tmp_path / "check.json").read_text())
    assert stored["duplicates"] == [["train/0", "train/copy"], ["train/1", "test/leak"]]
    assert stored["texts"]["end_frame"].startswith("end_frame is exclusive (auto): of 2 clips")


def test_parts_of_one_video_are_no_duplicates(root):
    write_table(
        root, "5.mp4,a,train,0,4", "5.mp4,b,train,4,8", "4.mp4,a,test,,",
        header="path,label,split,start_frame,end_frame",
    )  # fmt: skip
    _, findings = prepare(root)
    assert findings.duplicates == ()


def test_end_frame_is_decided_from_the_videos_and_told(root):
    rows = [f"{n}.mp4,a,{'train' if n < 4 else 'test'},0,{n + 2}" for n in range(6)]
    write_table(root, *rows, header="path,label,split,start_frame,end_frame")
    index, findings = prepare(root)
    assert [clip.end_frame for clip in index.clips] == [3, 4, 5, 6, 7, 8]
    assert "inclusive (auto): of 6 clips 0 end at" in findings.lines()[0]
    index, _ = prepare(root, end_frame="exclusive")
    assert [clip.end_frame for clip in index.clips] == [2, 3, 4, 5, 6, 7]


# ---- published counts -----------------------------------------------------------------------


def test_a_difference_to_the_published_counts_is_explained(root):
    write_root(root, train=[PUT | {"id": str(n)} for n in range(5)] + [MOVE], labels=LABELS)
    write_video(root / "99.webm", codec="libvpx-vp9", num_frames=3, size=(32, 32))
    for n in range(4):
        write_video(root / f"{n}.webm", codec="libvpx-vp9", num_frames=3, size=(32, 32), seed=n)
    (root / "3.webm").write_bytes(b"")
    _, findings = prepare(root, "ssv2", official_counts=True)
    train, test, unlabelled = findings.lines()
    assert train == (
        "published counts: train: 168,913 published, 6 annotated, 168,907 fewer (another release "
        "of the annotations, or a part of it), 2 missing, 1 unreadable, 3 usable"
    )
    assert test.endswith("24,776 fewer (another release of the annotations, or a part of it), "
                         "1 usable")  # fmt: skip
    assert unlabelled.endswith("not indexed: no labels")
    assert "unlabelled" not in findings.usable and findings.annotated["unlabelled"] == 1


def test_equal_counts_are_said_to_be_equal_and_held_out_clips_are_named(root, monkeypatch):
    monkeypatch.setattr("dsts_pipeline.clips.diving48.OFFICIAL_COUNTS", (("train", 4), ("test", 2)))
    items = [{"vid_name": str(n), "label": n % 2} for n in range(6)]
    (root / "rgb").mkdir()
    for video in root.glob("*.mp4"):
        video.rename(root / "rgb" / video.name)
    write_json(root / "Diving48_V2_train.json", items[:4])
    write_json(root / "Diving48_V2_test.json", items[4:])
    write_json(root / "Diving48_vocab.json", [["Back", "1", "1", str(n)] for n in range(2)])
    _, findings = prepare(
        root, "diving48", official_counts=True, heldout_fraction=0.5, heldout_seed=3
    )
    train, test = findings.lines()
    assert train.endswith("train: 4 published, as many annotated, 2 held out as val, 2 usable")
    assert test.endswith("test: 2 published, as many annotated, 2 usable")


# ---- the validation split -------------------------------------------------------------------


def test_val_comes_out_of_train_alone_and_order_stays(root):
    write_table(root, *(f"{n}.mp4,a,{'train' if n < 4 else 'test'}" for n in range(6)))
    plain, _ = prepare(root)
    index, findings = prepare(root, heldout_fraction=0.5, heldout_seed=1)
    assert [clip.id for clip in index.clips] == [clip.id for clip in plain.clips]
    assert index.count_splits() == {"train": 2, "val": 2, "test": 2}
    assert [c.split for c in index.clips[4:]] == ["test", "test"]
    again, _ = prepare(root, heldout_fraction=0.5, heldout_seed=1)
    assert again.digest == index.digest != plain.digest


def test_copies_of_one_video_are_held_out_together(root):
    for n in range(3):
        shutil.copy(root / f"{n}.mp4", root / f"{n}_again.mp4")
    names = [f"{n}{ending}" for n in range(3) for ending in ("", "_again")]
    write_table(root, *(f"{name}.mp4,a,train" for name in names), "5.mp4,a,test")
    for seed in range(5):
        index, findings = prepare(root, heldout_fraction=0.4, heldout_seed=seed)
        assert index.count_splits()["val"] == 2 and findings.in_several_splits == ()


def test_groups_are_held_out_whole(root):
    groups = "anna anna bo bo".split()
    rows = [f"{n}.mp4,a,train,{group}" for n, group in enumerate(groups)]
    write_table(root, *rows, "5.mp4,a,test,cy", header="path,label,split,group")
    index, _ = prepare(root, heldout_fraction=0.5, heldout_by="group")
    assert {clip.group for clip in index.of_split("val")} in ({"anna"}, {"bo"})
    assert len(index.of_split("val")) == 2


@pytest.mark.parametrize(
    ("split", "by", "message"),
    [
        ("val", "clip", "a val split of their own"),
        ("train", "group", "the annotations tell no groups: set it to clip"),
    ],
)
def test_what_cannot_be_held_out_is_explained(root, split, by, message):
    write_table(root, "0.mp4,a,train", f"1.mp4,a,{split}", "2.mp4,a,test")
    with pytest.raises(DataError, match=message):
        prepare(root, heldout_fraction=0.5, heldout_by=by)


# ---- a test split that is drawn -----------------------------------------------------------------


def test_a_test_split_is_drawn_by_class_told_and_recorded(root):
    write_table(root, *(f"{n}.mp4,{'ab'[n % 2]}" for n in range(6)), header="path,label")
    with pytest.raises(DataError, match="no column 'split' .*set dataset.test_fraction"):
        prepare(root)
    index, findings = prepare(root, test_fraction=0.34)
    assert index.count_splits() == {"train": 4, "test": 2}
    assert sorted(clip.label for clip in index.of_split("test")) == [0, 1]
    assert findings.test_split == {"fraction": 0.34, "seed": 0, "by": "clip", "num_clips": 2}
    assert findings.lines() == [
        "test split: 2 of 6 clips, drawn for dataset.test_fraction = 0.34 with "
        "dataset.heldout_seed = 0, by class, copies of a video together"
    ]
    seeds = {prepare(root, test_fraction=0.34, heldout_seed=n)[0].digest for n in range(9)}
    assert len(seeds) > 1 and index.digest == prepare(root, test_fraction=0.34)[0].digest


def test_groups_are_drawn_whole_and_val_comes_out_of_the_rest(root):
    for n in range(12):
        folder = root / "ab"[n % 2] / f"group {n // 2}"
        folder.mkdir(parents=True)
        write_video(folder / f"{n}.mp4", num_frames=3, size=(32, 32), seed=n)
    for video in root.glob("*.mp4"):
        video.unlink()
    index, findings = prepare(
        root, "folder", test_fraction=0.34, heldout_fraction=0.25, heldout_by="group"
    )
    groups = {split: {c.group for c in index.of_split(split)} for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in groups.items()} == {
        "train": 3,
        "val": 1,
        "test": 2,
    }
    assert index.count_splits() == {"train": 6, "val": 2, "test": 4}
    assert "whole groups" in findings.lines()[0]


def test_an_annotated_test_split_is_not_drawn_again(root):
    write_table(root, "0.mp4,a,train", "1.mp4,a,test")
    with pytest.raises(
        DataError, match="a test split of their own: set dataset.test_fraction to 0"
    ):
        prepare(root, test_fraction=0.5)


# ---- refusals -----------------------------------------------------------------------------------


def test_one_bad_clip_of_a_small_set_is_a_decision_that_is_explained(root):
    for n in range(6, 18):
        shutil.copy(root / f"{n % 6}.mp4", root / f"{n}.mp4")
    (root / "3.mp4").write_bytes(b"")
    write_table(root, *(f"{n}.mp4,a,{'train' if n < 9 else 'test'}" for n in range(18)))
    with pytest.raises(
        RefusedClipsError, match=r"1 of 18 annotated clips are unusable \(5\.6 %\)"
    ) as told:
        prepare(root, max_problem_fraction=0.01)
    assert "max_problem_fraction = 0.01 allows 0" in str(told.value)
    cure = float(str(told.value).rpartition("dataset.max_problem_fraction=")[2])
    assert told.value.findings.problems == {"unreadable": ("train/3",)}
    index, _ = prepare(root, max_problem_fraction=cure)
    assert len(index.clips) == 17


@pytest.mark.parametrize("num_bad", range(1, 100))
def test_the_share_that_is_named_is_enough(num_bad):
    clips = (Clip("c", "c.mp4", 0, "train", 1, 0, 1, 1, ""),) * (100 - num_bad)
    problems = (Problem("p", "train", "p.mp4", "gone"),) * num_bad
    index = ClipIndex("x", "root", ("a",), (), (), clips, problems)
    told = _find_unusable(index, {"train"}, 0.001)
    cure = float(told.rpartition("dataset.max_problem_fraction=")[2])
    assert cure == num_bad / 100 and _find_unusable(index, {"train"}, cure) == ""


def test_a_missing_video_says_where_it_was_looked_for_and_what_is_there(root):
    (root / "0.mp4").rename(root / "Gro\u0308ße.MP4")
    (root / "link.mp4").symlink_to(root / "nothing")
    write_table(root, "Größe.mp4,a,train", "link.mp4,a,train", "gone.mp4,a,train",
                "1.mp4,a,train", "2.mp4,a,test")  # fmt: skip
    _, findings = prepare(root)
    assert findings.reasons == {
        "train/Größe": f"the video file is missing: looked for {root / 'Größe.mp4'}; "
        "'Gro\\u0308\\xdfe.MP4' is there: write the name as the file has it",
        "train/link": f"the video file is missing: looked for {root / 'link.mp4'}, a link to "
        "nothing",
        "train/gone": f"the video file is missing: looked for {root / 'gone.mp4'}",
    }


def test_class_names_that_look_alike_are_told(root):
    write_table(root, "0.mp4,Long Jump,train", "1.mp4,long_jump,train", "2.mp4,Long Jump,test")
    _, findings = prepare(root)
    assert findings.similar_classes == (("Long Jump", "long_jump"),)


def test_a_link_out_of_the_root_is_opened_where_that_is_allowed(root, tmp_path):
    (root / "0.mp4").rename(tmp_path / "elsewhere.mp4")
    (root / "0.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    write_table(root, "0.mp4,a,train", f"{tmp_path}/elsewhere.mp4,a,train", "1.mp4,a,test")
    index, _ = prepare(root, allow_outside_root=True)
    assert index.count_splits() == {"train": 2, "test": 1} and index.problems == ()


def test_clips_without_labels_stay_out_of_the_index(root):
    write_root(root, train=[PUT], validation=[PRETEND])
    for name in ("00042", "99"):
        write_video(root / f"{name}.webm", codec="libvpx-vp9", num_frames=3, size=(32, 32))
    index, _ = prepare(root, "ssv2")
    assert [clip.id for clip in index.clips] == ["00042", "99"]


def test_frames_and_groups_shared_by_splits_are_told(root):
    write_table(
        root,
        "4.mp4,a,train,0,4,anna",
        "4.mp4,b,test,3,7,bert",
        "5.mp4,a,train,0,4,carl",
        "5.mp4,b,test,4,8,anna",
        header="path,label,split,start_frame,end_frame,group",
    )
    _, findings = prepare(root, end_frame="exclusive")
    pairs = [tuple(name.split("@")[0] for name in pair) for pair in findings.overlapping]
    assert pairs == [("train/4", "test/4")]
    assert findings.groups_in_several_splits == ("anna",)
    assert {row[0] for row in findings.rows()} >= {
        "overlapping, in several splits",
        "groups in several splits",
    }


def test_ranges_in_seconds_beyond_the_video_are_told(root):
    write_table(
        root,
        "3.mp4,a,train,0,5",
        "4.mp4,b,train,0,0.3",  # 7 frames of a 24th are 0.292 s: rounded up
        "5.mp4,a,test,0.1,0.2",
        header="path,label,split,start_seconds,end_seconds",
    )
    _, findings = prepare(root)
    assert [name.split("@")[0] for name in findings.cut_ranges] == ["train/3"]


def test_names_longer_than_the_system_allows_are_missing_files(root):
    write_table(root, "0.mp4,a,train", f"{'x' * 300}.mp4,a,train", "1.mp4,a,test")
    index, findings = prepare(root)
    assert len(index.clips) == 2 and findings.problems == {"missing": (f"train/{'x' * 300}",)}


@pytest.mark.parametrize("column", ["label", "start_frame"])
def test_digits_without_end_are_an_error_with_their_line(root, column):
    cells = {"path": "0.mp4", "label": "0", "split": "train", "start_frame": "0"}
    cells[column] = "9" * 5000
    write_table(root, ",".join(cells.values()), header=",".join(cells))
    with pytest.raises(DataError, match="line 2"):
        prepare(root)
