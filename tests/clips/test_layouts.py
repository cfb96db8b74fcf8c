"""What `dsts new --videos` makes of a folder; no video is opened, so the files may be empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.clips.layouts import SMALL_TEST_FRACTION, TEST_FRACTION, find_layout


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def class_folders(root: Path, num_clips: int, *above: str) -> Path:
    """Three classes of so many clips, below each of `above`."""
    for folder in above or ("",):
        for name in ("jump", "roll", "turn"):
            make_files(root / folder, *(f"{name}/{n}.mp4" for n in range(num_clips)))
    return root


def test_class_folders_of_few_clips(tmp_path):
    layout = find_layout(class_folders(tmp_path, 6))
    assert (layout.format, layout.root) == ("folder", tmp_path)
    assert layout.settings == {"test_fraction": SMALL_TEST_FRACTION}
    assert layout.count_clips() == {"train": {"jump": 6, "roll": 6, "turn": 6}}
    assert any("no test split" in doubt for doubt in layout.unsure)
    assert any("mirrored" in doubt for doubt in layout.unsure)


def test_class_folders_of_more_clips(tmp_path):
    assert find_layout(class_folders(tmp_path, 10)).settings == {"test_fraction": TEST_FRACTION}


def test_splits_that_are_there(tmp_path):
    layout = find_layout(class_folders(tmp_path, 2, "Train", "val", "test"))
    assert (layout.format, layout.settings) == ("folder", {})
    assert {split: c.total() for split, c in layout.count_clips().items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }


def test_the_one_folder_inside_is_taken(tmp_path):
    layout = find_layout(class_folders(tmp_path / "mine", 2, "videos/clips").parent / "mine")
    assert layout.root == tmp_path / "mine" / "videos" / "clips"
    assert any("nothing but" in doubt for doubt in layout.unsure)


def test_one_class_is_no_folder_to_pass_through(tmp_path):
    layout = find_layout(make_files(tmp_path, "jump/a.mp4", "jump/b.mp4"))
    assert layout.root == tmp_path
    assert any("only one class" in doubt for doubt in layout.unsure)


def test_splits_below_classes_are_doubted(tmp_path):
    names = [
        f"{name}/{split}/{n}.mp4" for name in "ab" for split in ("train", "test") for n in "12"
    ]
    layout = find_layout(make_files(tmp_path, *names))
    assert any("train/CLASS" in doubt or "test/CLASS" in doubt for doubt in layout.unsure)


@pytest.mark.parametrize("name", ["annotations.csv", "labels_of_mine.csv"])
def test_a_table(tmp_path, name):
    make_files(tmp_path, *(f"v{n}.mp4" for n in range(4)))
    (tmp_path / name).write_text("path,label\nv0.mp4,a\nv1.mp4,a\nv2.mp4,b\nv3.mp4,b\n")
    layout = find_layout(tmp_path)
    own = {} if name == "annotations.csv" else {"train_file": name}
    assert layout.format == "csv"
    assert layout.settings == {**own, "test_fraction": SMALL_TEST_FRACTION}


def test_several_tables_are_a_question(tmp_path):
    make_files(tmp_path, "one.csv", "two.csv")
    with pytest.raises(DataError, match=r"one\.csv, two\.csv; which is the table"):
        find_layout(tmp_path)


def test_a_table_beside_class_folders(tmp_path):
    class_folders(tmp_path, 2)
    make_files(tmp_path, "train_list_videos.txt")
    (tmp_path / "annotations.csv").write_text(
        "path,label,split\njump/0.mp4,jump,train\nroll/0.mp4,roll,test\n"
    )
    layout = find_layout(tmp_path)
    assert layout.format == "csv"
    assert "annotations.csv was read, not train_list_videos.txt" in layout.unsure
    assert any("no clip in train, such as 'roll'" in doubt for doubt in layout.unsure)


def test_lists_of_mmaction2(tmp_path):
    make_files(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "train_list_videos.txt").write_text("a.mp4 0\n")
    (tmp_path / "val_list_videos.txt").write_text("b.mp4 0\n")
    assert find_layout(tmp_path).format == "mmaction"


def test_diving48(tmp_path):
    write_json(tmp_path / "Diving48_vocab.json", [["Back", "15som", "05Twis", "FREE"]])
    clip = {"vid_name": "a_00001", "label": 0, "start_frame": 0, "end_frame": 9}
    write_json(tmp_path / "Diving48_V2_train.json", [clip])
    write_json(tmp_path / "Diving48_V2_test.json", [{**clip, "vid_name": "b_00001"}])
    layout = find_layout(tmp_path)
    assert (layout.format, layout.settings) == ("diving48", {})
    assert not any("mirrored" in doubt for doubt in layout.unsure)  # known of this set


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.mp4", "b.mp4"], "found 2 videos, such as a.mp4, and nothing that tells their classes"),
        (["notes/readme.txt"], "no video in the folder of class 'notes'"),
        ([], "no video found"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, names, told):
    with pytest.raises(DataError, match=told):
        find_layout(make_files(tmp_path, *names))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_layout(tmp_path / "nowhere")
