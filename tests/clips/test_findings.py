"""What `prepare` says of a data set: duplicates, leaks, unused classes, extra files, counts."""

from __future__ import annotations

import json
import shutil

import pytest
from rich.console import Console

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.clips.prepare import HoldOut, prepare_clips
from tests.clips.test_ssv2 import LABELS, MOVE, PRETEND, PUT, write_root
from tests.clips.videos import write_video


def prepare(root, kind="csv", **changes):
    return prepare_clips(
        name="mine", kind=kind, root=root, **({"max_problem_fraction": 1.0} | changes)
    )


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
        root, "diving48", official_counts=True, hold_out=HoldOut(fraction=0.5, seed=3)
    )
    train, test = findings.lines()
    assert train.endswith("train: 4 published, as many annotated, 2 held out as val, 2 usable")
    assert test.endswith("test: 2 published, as many annotated, 2 usable")


# ---- the validation split -------------------------------------------------------------------


def test_val_comes_out_of_train_alone_and_order_stays(root):
    write_table(root, *(f"{n}.mp4,a,{'train' if n < 4 else 'test'}" for n in range(6)))
    plain, _ = prepare(root)
    index, findings = prepare(root, hold_out=HoldOut(fraction=0.5, seed=1))
    assert [clip.id for clip in index.clips] == [clip.id for clip in plain.clips]
    assert index.count_splits() == {"train": 2, "val": 2, "test": 2}
    assert [c.split for c in index.clips[4:]] == ["test", "test"]
    again, _ = prepare(root, hold_out=HoldOut(fraction=0.5, seed=1))
    assert again.digest == index.digest != plain.digest


def test_copies_of_one_video_are_held_out_together(root):
    for n in range(3):
        shutil.copy(root / f"{n}.mp4", root / f"{n}_again.mp4")
    names = [f"{n}{ending}" for n in range(3) for ending in ("", "_again")]
    write_table(root, *(f"{name}.mp4,a,train" for name in names), "5.mp4,a,test")
    for seed in range(5):
        index, findings = prepare(root, hold_out=HoldOut(fraction=0.4, seed=seed))
        assert index.count_splits()["val"] == 2 and findings.in_several_splits == ()


def test_groups_are_held_out_whole(root):
    groups = "anna anna bo bo".split()
    rows = [f"{n}.mp4,a,train,{group}" for n, group in enumerate(groups)]
    write_table(root, *rows, "5.mp4,a,test,cy", header="path,label,split,group")
    index, _ = prepare(root, hold_out=HoldOut(fraction=0.5, by="group"))
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
        prepare(root, hold_out=HoldOut(fraction=0.5, by=by))


def test_clips_without_labels_stay_out_of_the_index(root):
    write_root(root, train=[PUT], validation=[PRETEND])
    for name in ("00042", "99"):
        write_video(root / f"{name}.webm", codec="libvpx-vp9", num_frames=3, size=(32, 32))
    index, _ = prepare(root, "ssv2")
    assert [clip.id for clip in index.clips] == ["00042", "99"]
