"""People's own data: class folders, CSV tables, mmaction2's lists; right ones and wrong ones."""

from __future__ import annotations

import os

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import read_annotations
from dsts_pipeline.clips.findings import list_extra_videos
from tests.clips.test_ssv2 import measure_reading


def rows_of(annotations):
    return [(c.id, c.path, c.label, c.split) for c in annotations.clips]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# ---- one folder per class -----------------------------------------------------------------------


def test_folders_with_split_levels(tmp_path):
    touch(tmp_path, "train/jump/0007.mp4", "train/fall/Süß 'x' [y].webm", "test/jump/b.MOV")
    touch(tmp_path, "train/jump/notes.txt", "train/jump/.hidden.mp4", "train/jump/anna/a.mp4")
    found = read_annotations("folder", tmp_path)
    assert found.class_names == ("fall", "jump")
    assert rows_of(found) == [
        ("train/fall/Süß 'x' [y]", "train/fall/Süß 'x' [y].webm", 0, "train"),
        ("train/jump/0007", "train/jump/0007.mp4", 1, "train"),
        ("train/jump/anna/a", "train/jump/anna/a.mp4", 1, "train"),
        ("test/jump/b", "test/jump/b.MOV", 1, "test"),
    ]
    assert [c.group for c in found.clips] == [None, None, "anna", None]
    assert found.video_folders == (".",)


def test_folders_without_levels_need_a_share_to_test_by_and_val_alone_is_what_is_tested(tmp_path):
    touch(tmp_path / "flat", "jump/a.mp4", "fall/a.mp4")
    with pytest.raises(DataError, match=r"no folder called test .* set dataset\.test_fraction"):
        read_annotations("folder", tmp_path / "flat")
    found = read_annotations("folder", tmp_path / "flat", test_fraction=0.5)
    assert [c.split for c in found.clips] == ["train", "train"]
    touch(tmp_path / "two", "train/jump/a.mp4", "validation/jump/b.mp4")
    found = read_annotations("folder", tmp_path / "two")
    assert [c.split for c in found.clips] == ["train", "test"]
    touch(tmp_path / "two", "test/jump/c.mp4")
    found = read_annotations("folder", tmp_path / "two")
    assert [c.split for c in found.clips] == ["train", "val", "test"]


def test_a_class_file_orders_the_classes(tmp_path):
    touch(tmp_path, "train/jump/a.mp4", "train/fall/a.mp4")
    (tmp_path / "classes.txt").write_bytes("\ufeffjump\r\nfall\r\nspin\r\n".encode())
    found = read_annotations("folder", tmp_path, test_fraction=0.5)
    assert found.class_names == ("jump", "fall", "spin")
    assert [(c.id, c.label) for c in found.clips] == [("train/fall/a", 1), ("train/jump/a", 0)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no video found; expected one folder per class"),
        (["jump/a.txt"], "no video in the folder of class 'jump'"),
        (["train/a.mp4"], r"a video outside of a class folder; expected train/CLASS/a\.mp4"),
        (["test/jump/a.mp4"], "found test, .* but no train folder"),
        (["jump/a.mp4", "jump/a.webm"], "clip 'jump/a' stands again in the train split"),
    ],
)
def test_wrong_folders_are_explained(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        read_annotations("folder", touch(tmp_path, *files))


@pytest.mark.parametrize("name", ["train/jump/link.mp4", "train/jump/link", "train/link"])
def test_links_out_of_the_root_are_refused_by_name(tmp_path, name):
    root = touch(tmp_path / "root", "train/jump/a.mp4")
    outside = touch(tmp_path / "outside", "b.mp4")
    (root / name).symlink_to(outside / "b.mp4" if name.endswith("mp4") else outside)
    with pytest.raises(DataError, match=f"{name}: a link that leads out of the data root"):
        read_annotations("folder", root)


def test_a_link_inside_the_root_is_followed_for_a_file_and_refused_for_a_folder(tmp_path):
    touch(tmp_path, "train/jump/a.mp4", "test/jump/c.mp4")
    (tmp_path / "train/jump/b.mp4").symlink_to(tmp_path / "train/jump/a.mp4")
    assert len(read_annotations("folder", tmp_path).clips) == 3
    (tmp_path / "train/jump/loop").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match="loop: a link to a folder"):
        read_annotations("folder", tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("TRAIN", "TESTING"), ("training", "testing"), ("train", "Valid")],
)
def test_folders_of_splits_go_by_any_usual_word(tmp_path, train, test):
    touch(tmp_path, f"{train}/jump/a.mp4", f"{test}/jump/b.mp4", "spare/jump/c.mp4")
    found = read_annotations("folder", tmp_path)
    assert found.class_names == ("jump",)
    assert [c.split for c in found.clips] == ["train", "test"]
    assert list_extra_videos(found, tmp_path) == ["spare/jump/c.mp4"]
    touch(tmp_path, "tRaIn/jump/d.mp4")
    with pytest.raises(DataError, match="both mean the split train"):
        read_annotations("folder", tmp_path)


def test_names_that_are_no_utf8_are_listed_and_counted(tmp_path):
    touch(tmp_path, "train/jump/a.mp4", "test/jump/b.mp4")
    top = os.fsencode(tmp_path)
    for name in (b"train/jump/caf\xe9.mp4", b"train/f\xe4ll/c.mp4", b"test/jump/an\xf1a/d.mp4"):
        os.makedirs(os.path.dirname(top + b"/" + name), exist_ok=True)
        open(top + b"/" + name, "w").close()
    touch(tmp_path, "train/jump/two\nlines.mp4")
    found = read_annotations("folder", tmp_path)
    assert found.class_names == ("jump",) and len(found.clips) == 2
    assert sorted((clip.id, clip.path, clip.split) for clip in found.unusable) == [
        ("test/jump/an\\xf1a/d", "test/jump/an\\xf1a/d.mp4", "test"),
        ("train/f\\xe4ll/c", "train/f\\xe4ll/c.mp4", "train"),
        ("train/jump/caf\\xe9", "train/jump/caf\\xe9.mp4", "train"),
        ("train/jump/two\\nlines", "train/jump/two\\nlines.mp4", "train"),
    ]
    assert list_extra_videos(found, tmp_path) == []


def test_extra_videos_of_any_name_can_be_printed(tmp_path):
    write_table(tmp_path, HEAD + "a.mp4,x,train\nb.mp4,x,test\n")
    open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "w").close()
    found = read_annotations("csv", tmp_path)
    assert list_extra_videos(found, tmp_path) == ["caf\\xe9.mp4"]


def test_files_that_are_passed_over_are_told(tmp_path):
    touch(tmp_path, "train/jump/a.mp4", "train/jump/b.mts", "train/jump/c.mts", "test/jump/d.mp4")
    (note,) = read_annotations("folder", tmp_path).notes
    assert note.startswith("2 files in the folders of classes") and note.endswith("2 .mts")


def test_links_out_of_the_root_are_followed_where_that_is_allowed(tmp_path):
    root = touch(tmp_path / "root", "train/jump/a.mp4", "test/jump/a.mp4")
    outside = touch(tmp_path / "outside", "b.mp4")
    (root / "train/fall").symlink_to(outside)
    found = read_annotations("folder", root, allow_outside_root=True)
    assert [c.path for c in found.clips][:2] == ["train/fall/b.mp4", "train/jump/a.mp4"]
    (outside / "round").symlink_to(outside)
    with pytest.raises(DataError, match="round: a link to a folder, read twice"):
        read_annotations("folder", root, allow_outside_root=True)


# ---- CSV ----------------------------------------------------------------------------------------

TABLE = """path,label,split,id,start_frame,end_frame,start_seconds,end_seconds,group,_note
a/01.mp4,"jump, ""high"" [fast]",train,0001,0,30,,,anna,kept
a/01.mp4,fall,train,,30,60,,,anna,
b/Größe.webm,fall,val,,,,1.5,2.25,,
b/2.webm,fall,test,,,,,,bo,
"""


def write_table(root, text=TABLE, name="annotations.csv", encoding="utf-8"):
    (root / name).write_bytes(text.encode(encoding))
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_in_every_dress(tmp_path, encoding, newline, delimiter):
    text = TABLE.replace('jump, ""high""', 'jump| ""high""').replace(",", delimiter)
    write_table(tmp_path, text.replace("|", ",").replace("\n", newline), encoding=encoding)
    found = read_annotations("csv", tmp_path)
    assert found.class_names == ("fall", 'jump, "high" [fast]')
    assert rows_of(found) == [
        ("0001", "a/01.mp4", 1, "train"),
        ("a/01@30-60", "a/01.mp4", 0, "train"),
        ("b/Größe@1.5-2.25", "b/Größe.webm", 0, "val"),
        ("b/2", "b/2.webm", 0, "test"),
    ]
    first, _, third, fourth = found.clips
    assert (first.start_frame, first.end_frame, first.group) == (0, 30, "anna")
    assert (third.start_seconds, third.end_seconds, third.group) == (1.5, 2.25, None)
    assert (fourth.start_frame, fourth.end_seconds) == (None, None)


def test_csv_a_file_for_each_split_and_numbers_as_labels(tmp_path):
    write_table(tmp_path, "path,label\nx.mp4,2\n", "train.csv")
    write_table(tmp_path, "label,path\n0,y.mp4\n", "test.csv")
    found = read_annotations("csv", tmp_path, video_folder="videos")
    assert found.class_names == ("0", "1", "2")
    assert rows_of(found) == [
        ("x", "videos/x.mp4", 2, "train"),
        ("y", "videos/y.mp4", 0, "test"),
    ]
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    named = read_annotations("csv", tmp_path, class_file="names.txt")
    assert named.class_names == ("a", "b", "c") and named.clips[0].label == 2


HEAD = "path,label,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a.mp4,x,train\n../b.mp4,x,test\n", r"line 3: file name '\.\./b\.mp4' leads out"),
        (HEAD + "/b.mp4,x,test\n", "line 2: file name '/b.mp4' leads out of the data root"),
        (HEAD + "a/../../b.mp4,x,test\n", "line 2: .*leads out of the data root"),
        (HEAD + "a\\b.mp4,x,test\n", "line 2: .*with forward slashes"),
        (HEAD + ",x,test\n", "line 2: the file name is empty"),
        (HEAD + "b.mp4,x,eval\n", "line 2: split is 'eval'; expected train, val or test"),
        (HEAD + "b.mp4,,test\n", "line 2: the label is empty"),
        (HEAD + "b.mp4,x\n", "line 2: 2 cells; expected 3"),
        (HEAD + "b.mp4,x,test\nb.mp4,y,test\n", r"line 3: clip 'b' stands again .*line 2\)"),
        (HEAD + 'b.mp4,"x,test\n', "a quote that opens a cell has to be closed"),
        (HEAD, "it has no row"),
        ("path,labl,split\n", "column 'labl' is unknown; did you mean label?"),
        ("path,label\na.mp4,x\n", "no column 'split' .*set dataset.test_fraction"),
        ("path,label,path\n", "column 'path' stands twice"),
        ("", "no column 'path'"),
        ("path,label,split,start_frame\na,x,test,-3\n", "start_frame is '-3'"),
        ("path,label,split,start_seconds\na,x,test,nan\n", "start_seconds is 'nan'"),
        ("path,label,split,end_seconds\na,x,test,0\n", "end_seconds 0 is not after"),
        ("path,label,split,start_frame,end_seconds\na,x,test,1,2\n", "in frames and in seconds"),
        ("path,label,split,start_frame,end_frame\na,x,test,5,5\n", "5 is not after start_frame"),
    ],
)
def test_wrong_tables_are_explained_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_annotations("csv", write_table(tmp_path, text))


def test_missing_tables_and_labels_beyond_the_class_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv: no such file; expected annotations\.csv"):
        read_annotations("csv", tmp_path)
    write_table(tmp_path, HEAD + "a.mp4,9,train\n")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="line 2: label '9' is neither one of the 2 classes"):
        read_annotations("csv", tmp_path)
    (tmp_path / "classes.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="class 'a' stands in lines 1 and 2"):
        read_annotations("csv", tmp_path)


def test_labels_and_frames_as_pandas_writes_them(tmp_path):
    rows = "a.mp4,0.0,train,30.0\nb.mp4,2.0,train,\nc.mp4,10.0,test,0.0\n"
    write_table(tmp_path, "path,label,split,start_frame\n" + rows)
    found = read_annotations("csv", tmp_path)
    assert [c.label for c in found.clips] == [0, 2, 10] and len(found.class_names) == 11
    assert [c.start_frame for c in found.clips] == [30, None, 0]


def test_splits_in_any_case_and_a_file_of_val_beside_the_others(tmp_path):
    write_table(tmp_path, HEAD + "a.mp4,x,Training\nb.mp4,x,VALID\nc.mp4,x,Test\n")
    assert [c.split for c in read_annotations("csv", tmp_path).clips] == ["train", "val", "test"]
    (tmp_path / "annotations.csv").unlink()
    for name in ("train", "val", "test"):
        write_table(tmp_path, f"path,label\n{name}.mp4,x\n", f"{name}.csv")
    assert [c.split for c in read_annotations("csv", tmp_path).clips] == ["train", "val", "test"]
    write_table(tmp_path, "path,label,split\ntrain.mp4,x,test\n", "train.csv")
    with pytest.raises(DataError, match="line 2: split is 'test' in the file of the train split"):
        read_annotations("csv", tmp_path)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";", "  "])
def test_lists_in_files_called_csv(tmp_path, separator):
    rows = f'{tmp_path}/v/a b.mp4{separator}3\r\n"v/c d.mp4"{separator}0.0\r\n'
    write_table(tmp_path, rows, "train.csv", encoding="utf-8-sig")
    write_table(tmp_path, f"v/e.mp4{separator}1\n", "val.csv")
    found = read_annotations("csv", tmp_path)
    assert rows_of(found) == [
        ("v/a b", "v/a b.mp4", 3, "train"),
        ("v/c d", "v/c d.mp4", 0, "train"),
        ("v/e", "v/e.mp4", 1, "test"),
    ]
    assert "train.csv: read as a list" in found.notes[0]


def test_a_table_without_names_of_columns_is_told_what_it_lacks(tmp_path):
    write_table(tmp_path, "a.mp4,jump,train\nb.mp4,jump,test\n")
    with pytest.raises(DataError, match="the first line is a clip .* such as path,label,split"):
        read_annotations("csv", tmp_path)


@pytest.mark.parametrize("through", ["the root", "a link to it"])
@pytest.mark.parametrize("kind", ["csv", "mmaction"])
def test_absolute_paths_inside_the_root_are_inside(tmp_path, kind, through):
    root = touch(tmp_path / "data", "videos/a.mp4", "videos/b.mp4")
    (tmp_path / "link").symlink_to(root)
    top = root if through == "the root" else tmp_path / "link"
    if kind == "csv":
        write_table(root, f"{HEAD}{top}/videos/a.mp4,x,train\n{top}//videos/./b.mp4,x,test\n")
    else:
        write_lists(root, train=f"{top}/videos/a.mp4 0\n", val=f"{top}//videos/./b.mp4 0\n")
    found = read_annotations(kind, root, video_folder="videos")
    assert [(c.id, c.path) for c in found.clips] == [("a", "videos/a.mp4"), ("b", "videos/b.mp4")]
    found = read_annotations(kind, root, video_folder=str(top / "videos"))
    assert [c.path for c in found.clips] == ["videos/a.mp4", "videos/b.mp4"]


def test_paths_outside_are_taken_where_that_is_allowed(tmp_path):
    root, outside = touch(tmp_path / "data", "a.mp4"), touch(tmp_path / "outside", "b.mp4")
    write_table(root, f"{HEAD}{outside}/b.mp4,x,train\n../outside/b.mp4,x,test\n")
    with pytest.raises(
        DataError, match="line 2: .*leads out of the data root .*allow_outside_root"
    ):
        read_annotations("csv", root)
    found = read_annotations("csv", root, allow_outside_root=True)
    assert [c.path for c in found.clips] == [f"{outside}/b.mp4", "../outside/b.mp4"]
    assert all((root / c.path).is_file() for c in found.clips)
    assert list_extra_videos(found, root) == ["a.mp4"]


def test_a_name_that_climbs_and_stays_inside_is_not_said_to_lead_out(tmp_path):
    write_table(tmp_path, HEAD + "a/../b.mp4,x,train\nc.mp4,x,test\n")
    with pytest.raises(DataError, match=r"climbs by '\.\.' and stays in .* write it as 'b\.mp4'"):
        read_annotations("csv", tmp_path)


@pytest.mark.parametrize("column", ["id", "group", "path", "label"])
def test_control_characters_are_refused_by_row(tmp_path, column):
    cells = {"path": "a.mp4", "label": "x", "split": "train", "id": "i", "group": "g"}
    cells[column] += "\x1b!"
    write_table(tmp_path, ",".join(cells) + "\n" + ",".join(cells.values()) + "\nb.mp4,x,test,,\n")
    with pytest.raises(DataError, match="line 2: .*holds a control character"):
        read_annotations("csv", tmp_path)


def test_control_characters_in_files_of_classes_are_refused(tmp_path):
    write_table(tmp_path, HEAD + "a.mp4,0,train\nb.mp4,0,test\n")
    (tmp_path / "classes.txt").write_text("jump\nfa\x00ll\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 2: class name .*control character"):
        read_annotations("csv", tmp_path)


# ---- mmaction2's lists --------------------------------------------------------------------------


def write_lists(root, train="a/0001.mp4 1\nb c.mp4 0\n", val="d.mp4 1\n", prefix="", names=None):
    root.mkdir(exist_ok=True)
    (root / f"{prefix}train_list_videos.txt").write_text(train)
    (root / f"{prefix}val_list_videos.txt").write_text(val)
    if names is not None:
        (root / "label_map.txt").write_text(names)
    return root


@pytest.mark.parametrize("prefix", ["", "diving48_"])
def test_mmaction_lists(tmp_path, prefix):
    (tmp_path / "videos").mkdir()
    write_lists(tmp_path, prefix=prefix, train="\ufeffa/0001.mp4 1\r\nb c.mp4 0\r\n\r\n")
    found = read_annotations("mmaction", tmp_path)
    assert found.class_names == ("0", "1")
    assert rows_of(found) == [
        ("a/0001", "videos/a/0001.mp4", 1, "train"),
        ("b c", "videos/b c.mp4", 0, "train"),
        ("d", "videos/d.mp4", 1, "test"),
    ]


def test_mmaction_lists_with_class_names_and_chosen_files(tmp_path):
    write_lists(tmp_path, names="jump\nfall\n")
    (tmp_path / "mine.txt").write_text("e.mp4 0\n")
    found = read_annotations("mmaction", tmp_path, test_file="mine.txt", video_folder="rgb")
    assert found.class_names == ("jump", "fall")
    assert [c.path for c in found.clips] == ["rgb/a/0001.mp4", "rgb/b c.mp4", "rgb/e.mp4"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("some/dir 161 44\n", "line 1 is 'some/dir 161 44', as in lists of raw frames"),
        ("a.mp4 1\nsome/dir 3 161 44\n", "line 2 .* folders of frames are not read"),
        ("a.mp4 1 2\n", "several labels; expected one class a clip"),
        ("a.mp4\n", "line 1 is 'a.mp4'; expected 'path label'"),
        ("a.mp4 x\n", "expected 'path label', the label a class number"),
        ("a.mp4 0\nb.mp4 -1\n", "line 2: the label is '-1', a negative number"),
        ("a.mp4 0.5\n", "line 1: the label is '0.5', no whole number"),
        ("a\\b.mp4 0\n", "line 1: .*holds a backslash"),
        ("a.mp4 0\n./a.mp4 1\n", "line 2: clip 'a' stands again"),
        ("", "the train split is empty"),
        ("../a.mp4 1\n", r"line 1: file name '\.\./a\.mp4' leads out of the data root"),
        ("/data/a.mp4 1\n", "line 1: .*leads out of the data root"),
        ("a.mp4 1\na.mp4 0\n", "line 2: clip 'a' stands again in the train split"),
    ],
)
def test_wrong_lists_are_explained_by_line(tmp_path, train, message):
    with pytest.raises(DataError, match=message):
        read_annotations("mmaction", write_lists(tmp_path, train=train))


def test_missing_and_ambiguous_lists_are_named(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "val_list_videos.txt").unlink()
    with pytest.raises(DataError, match="no test list; expected test_list_videos.txt or dataset"):
        read_annotations("mmaction", tmp_path)
    write_lists(tmp_path, prefix="other_")
    with pytest.raises(DataError, match="may both be the train list"):
        read_annotations("mmaction", tmp_path)


# ---- size ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "mmaction"])
def test_two_hundred_thousand_rows_in_seconds_and_300_mb(tmp_path, kind):
    if kind == "csv":
        splits = ["test"] + 199_999 * ["train"]
        lines = (
            f"a/{n:06d}.mp4,class {n % 174} ☕,{split},{n:06d},0,90"
            for n, split in enumerate(splits)
        )
        write_table(tmp_path, "path,label,split,id,start_frame,end_frame\n" + "\n".join(lines))
    else:
        train = "".join(f"a/{n:06d}.mp4 {n % 174}\n" for n in range(199_999))
        write_lists(tmp_path, train=train)
    measured = [measure_reading(kind, tmp_path)]
    if measured[0][1] >= 5:  # other work may have held the processor
        measured.append(measure_reading(kind, tmp_path))
    assert {count for count, _, _ in measured} == {200_000}
    # The goal is 5; processors shared with other work have been more than twice as slow.
    assert min(seconds for _, seconds, _ in measured) < 12, measured
    assert max(peak for _, _, peak in measured) < 300 * 10**6, measured
    print(kind, measured)


@pytest.mark.parametrize("lines", ["0 jump\n1 run\n", "1 run\n0 jump\n", "1, run\n0, jump"])
def test_class_files_that_number_their_lines_are_read_by_the_numbers(tmp_path, lines):
    (tmp_path / "annotations.csv").write_text("path,label,split\na.mp4,run,train\nb.mp4,0,test\n")
    (tmp_path / "classes.txt").write_text(lines)
    read = read_annotations("csv", tmp_path)
    assert read.class_names == ("jump", "run")
    assert [clip.label for clip in read.clips] == [1, 0]


def test_class_files_numbered_from_1_are_refused_and_other_numbers_are_names(tmp_path):
    (tmp_path / "annotations.csv").write_text("path,label,split\na.mp4,1,train\nb.mp4,0,test\n")
    (tmp_path / "classes.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n")
    with pytest.raises(DataError, match="numbered from 1 to 2"):
        read_annotations("csv", tmp_path)
    (tmp_path / "classes.txt").write_text("10 pushups\n20 pushups\n")
    assert read_annotations("csv", tmp_path).class_names == ("10 pushups", "20 pushups")


def test_tables_that_are_left_alone_are_told(tmp_path):
    (tmp_path / "annotations.csv").write_text("path,label,split\na.mp4,a,train\nb.mp4,a,test\n")
    (tmp_path / "train.csv").write_text("path,label\nc.mp4,a\n")
    notes = read_annotations("csv", tmp_path).notes
    assert "annotations.csv was read; left alone: train.csv beside it" in notes


def test_spellings_that_become_one_class_are_told(tmp_path):
    (tmp_path / "annotations.csv").write_text(
        "path,label,split\na.mp4,caf\u00e9,train\nb.mp4,cafe\u0301,test\n"
    )
    read = read_annotations("csv", tmp_path)
    assert read.class_names == ("caf\u00e9",)
    assert any("one class of several spellings" in note for note in read.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('"a.mp4,a,train\nb.mp4,a,test\n', "can't be taken apart .* has to be closed"),
        ('a.mp4,"a,train\nb.mp4,a",test\n', "the cell of label goes over several lines"),
    ],
)
def test_quotes_that_are_not_closed_are_told_as_such(tmp_path, rows, message):
    (tmp_path / "annotations.csv").write_text("path,label,split\n" + rows)
    with pytest.raises(DataError, match=message):
        read_annotations("csv", tmp_path)


def test_a_root_that_is_a_file_is_told_as_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; set dataset.root to the folder"):
        read_annotations("folder", tmp_path / "file")


def test_folders_say_what_is_wrong_with_them(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clip.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(DataError, match="a link to nothing"):
        read_annotations("folder", tmp_path, test_fraction=0.5)
    (tmp_path / "a" / "clip.mp4").unlink()
    (tmp_path / "a" / "clip.vob").touch()
    with pytest.raises(DataError, match=r"end with one of .*\.mp4 .*\.webm"):
        read_annotations("folder", tmp_path, test_fraction=0.5)
    (tmp_path / "a" / "clip.mp4").touch()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="called like a split, .* rename it where it is a class"):
        read_annotations("folder", tmp_path, test_fraction=0.5)
