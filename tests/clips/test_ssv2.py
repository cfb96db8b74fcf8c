"""Something-Something v2's annotation files: the official layout, its variants, and wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import read_annotations

ROOT = Path(__file__).resolve().parents[2]
# Out of order on purpose: the number counts, not the place.
LABELS = {
    "Putting something on something": "2",
    "Pretending to put something underneath something": "0",
    "Moving part of something": "1",
}
PUT = {
    "id": "00042",
    "label": 'putting "the [red] pen" on Ana\'s book, "quoted \\ twice"',
    "template": "Putting [something] on [something]",
    "placeholders": ['"the [red] pen"', "Ana's book"],
}
MOVE = {
    "id": "7",
    "label": "moving lid of Töpfchen ☕",
    "template": "Moving [part] of [something]",
    "placeholders": ["lid", "Töpfchen ☕"],
}
PRETEND = PUT | {"id": "99", "template": "Pretending to put [something] underneath [something]"}


def write_root(
    root,
    *,
    train=(PUT, MOVE),
    validation=(PRETEND,),
    test=({"id": "00001"},),
    labels=LABELS,
    prefix="",
    folder=".",
    encoding="utf-8",
    newline="\n",
):
    files = {"labels": labels, "train": train, "validation": validation, "test": test}
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is not None:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            data = text.replace("\n", newline).encode(encoding)
            (root / folder / f"{prefix}{name}.json").write_bytes(data)
    return root


def summary(annotations):
    return [(c.id, c.path, c.label, c.split) for c in annotations.clips]


EXPECTED = [
    ("00042", "00042.webm", 2, "train"),
    ("7", "7.webm", 1, "train"),
    ("99", "99.webm", 0, "test"),
]


def test_reads_the_official_layout(tmp_path):
    found = read_annotations("ssv2", write_root(tmp_path))
    assert found.class_names == (
        "Pretending to put something underneath something",
        "Moving part of something",
        "Putting something on something",
    )
    assert (found.attribute_names, found.attributes) == ((), ())
    assert summary(found) == EXPECTED
    assert dict(found.official_counts) == {"train": 168913, "test": 24777, "unlabelled": 27157}


def test_ids_without_labels_are_listed_apart(tmp_path):
    (clip,) = read_annotations("ssv2", write_root(tmp_path)).unlabelled
    assert (clip.id, clip.path, clip.label, clip.split) == ("00001", "00001.webm", -1, "unlabelled")
    (tmp_path / "test.json").unlink()
    assert read_annotations("ssv2", tmp_path).unlabelled == ()


@pytest.mark.parametrize("folder", [".", "labels", "annotations"])
@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_both_names_of_every_file_in_every_folder(tmp_path, prefix, folder):
    found = read_annotations("ssv2", write_root(tmp_path, prefix=prefix, folder=folder))
    assert summary(found) == EXPECTED and len(found.unlabelled) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_line_ends(tmp_path, encoding, newline):
    found = read_annotations("ssv2", write_root(tmp_path, encoding=encoding, newline=newline))
    assert summary(found) == EXPECTED


def test_an_item_may_have_a_group(tmp_path):
    root = write_root(tmp_path, train=[PUT | {"group": "Ana"}, MOVE])
    assert [clip.group for clip in read_annotations("ssv2", root).clips] == ["Ana", None, None]


@pytest.mark.parametrize("group", ["", 7, ["Ana"]])
def test_a_group_that_is_no_text_is_refused(tmp_path, group):
    root = write_root(tmp_path, train=[PUT | {"group": group}])
    with pytest.raises(DataError, match=r"item 0 \(id 00042\): its group is .* expected a text"):
        read_annotations("ssv2", root)


def test_ids_that_are_not_ascii(tmp_path):
    found = read_annotations("ssv2", write_root(tmp_path, train=[PUT | {"id": "Übung 東京"}]))
    assert found.clips[0].path == "Übung 東京.webm"


@pytest.mark.parametrize("folder", ["20bn-something-something-v2", "videos"])
def test_the_folder_of_videos_is_found(tmp_path, folder):
    (tmp_path / folder).mkdir()
    found = read_annotations("ssv2", write_root(tmp_path))
    assert found.clips[0].path == f"{folder}/00042.webm" and found.video_folders == (folder,)


def test_names_can_be_chosen(tmp_path):
    write_root(tmp_path, prefix="my-")
    found = read_annotations(
        "ssv2",
        tmp_path,
        video_folder="clips/webm",
        train_file="my-train.json",
        test_file="my-validation.json",
        class_file="my-labels.json",
    )
    assert found.clips[0].path == "clips/webm/00042.webm"


def test_two_label_files_that_agree_are_one_and_two_that_differ_are_an_error(tmp_path):
    write_root(tmp_path)
    other = tmp_path / "something-something-v2-labels.json"
    other.write_bytes((tmp_path / "labels.json").read_bytes())
    assert summary(read_annotations("ssv2", tmp_path)) == EXPECTED
    other.write_text(json.dumps(dict(zip(LABELS, "012", strict=True))))
    with pytest.raises(DataError, match=r"labels\.json and .*-labels\.json both hold the labels"):
        read_annotations("ssv2", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [PUT | {"template": "Eating [something]"}]}, "item 0 .id 00042.: template 'Eat"),
        ({"train": [PUT, {"id": "3"}]}, r"item 1 \(id 3\): its template is None"),
        ({"train": [PUT | {"id": 42}]}, "item 0 is .* expected an object with a text id"),
        ({"train": ["42"]}, "item 0 is '42'"),
        ({"train": [PUT, MOVE, PUT]}, r"item 2 names '00042' again \(first: item 0\)"),
        ({"train": []}, "the train split is empty"),
        ({"train": {"a": PUT}}, "found dict, expected a list"),
        ({"train": None}, "no training split; expected train.json or"),
        ({"validation": None}, "no validation split"),
        ({"labels": None}, "no labels; expected labels.json or something-something-v2-labels"),
        ({"labels": {"a": "0", "b": "0"}}, "'a' and 'b' both have number 0"),
        ({"labels": {"a": "0", "b": "2"}}, "no class has number 1; expected 0 to 1"),
        ({"labels": {"a": "first"}}, "class 'a' has number 'first'"),
        ({"labels": ["a"]}, "expected class numbers by name, found list"),
    ],
)
def test_wrong_annotations_are_explained(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_annotations("ssv2", write_root(tmp_path, **change))


@pytest.mark.parametrize("content", [b"[1, 2", b"[1 2]", b"[1] 2", b"", b"[\xff]"])
def test_what_is_no_json_is_named(tmp_path, content):
    write_root(tmp_path)
    (path,) = tmp_path.rglob("train.json")
    path.write_bytes(content)
    with pytest.raises(DataError, match="train.json: not a JSON file"):
        read_annotations("ssv2", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../42", "leads out of the data root"),
        ("/etc/42", "leads out of the data root"),
        ("a/../../42", "leads out of the data root"),
        ("..\\42", "holds a backslash"),
        ("4\x002", "holds a control character"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_name_that_leaves_the_root_is_refused_by_entry(tmp_path, split, name, message):
    bad = {split: [PUT, MOVE | {"id": name}]}
    with pytest.raises(DataError, match=rf"item 1 \(id .*{message}"):
        read_annotations("ssv2", write_root(tmp_path, **bad))


def test_an_escaped_half_of_a_surrogate_pair_is_no_name(tmp_path):
    write_root(tmp_path)
    for path in tmp_path.rglob("train.json"):
        path.write_text(json.dumps([PUT | {"id": "4\udcff2"}]))
    with pytest.raises(DataError, match="item 0 .*holds half a surrogate pair"):
        read_annotations("ssv2", tmp_path)


MEASURE = """
import re, sys, time
from dsts_pipeline.clips import read_annotations
start = time.process_time()  # of one thread: the same as the clock's, where nothing else runs
found = read_annotations(sys.argv[1], sys.argv[2])
seconds = time.process_time() - start
# Not ru_maxrss: that one starts from the memory of the process that started this one.
peak = re.search("VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())
print(len(found.clips) + len(found.unlabelled), seconds, int(peak[1]) * 1024)
"""


def measure_reading(kind: str, root: Path) -> tuple[int, float, int]:
    """Clips read in a process of its own, its seconds of work, and its peak memory in bytes."""
    command = [sys.executable, "-c", MEASURE, kind, str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, seconds, peak_bytes = done.stdout.split()
    return int(count), float(seconds), int(peak_bytes)


@pytest.mark.slow
def test_two_hundred_thousand_entries_in_seconds_and_300_mb(tmp_path):
    items = [MOVE | {"id": f"{n:06d}", "label": f"{MOVE['label']} {n}"} for n in range(200_000)]
    write_root(tmp_path, train=items[:170_000], validation=items[170_000:], test=None)
    measured = [measure_reading("ssv2", tmp_path)]
    if measured[0][1] >= 5:  # other work may have held the processor
        measured.append(measure_reading("ssv2", tmp_path))
    assert {count for count, _, _ in measured} == {200_000}
    # The goal is 5; processors shared with other work have been more than twice as slow.
    assert min(seconds for _, seconds, _ in measured) < 12, measured
    assert max(peak for _, _, peak in measured) < 300 * 10**6, measured
