"""Diving48 V2's annotation files.

Enters: a folder as published (http://www.svcl.ucsd.edu/projects/resound/dataset.html, V2):
`rgb/<vid_name>.mp4`, `Diving48_V2_train.json` and `Diving48_V2_test.json` with items
`{"vid_name", "label", "start_frame", "end_frame"}`, and `Diving48_vocab.json`, a list of
[takeoff, somersault, twist, position] whose place in the list is the label; also as mmaction2 lays
it out, with `videos/` and `annotations/`. Leaves: `Annotations`.

`end_frame` is passed on as written: whether that frame still belongs to the clip is not published
(see `dataset.end_frame`). A clip's group is its source video, `vid_name` without its number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    AnnotatedClip,
    Annotations,
    Sources,
    VideoPaths,
    check_frames,
    check_text,
    find_file,
    read_items,
    refuse_repeats,
)

ATTRIBUTE_NAMES = ("takeoff", "somersault", "twist", "position")
VOCABULARY_FILE = "Diving48_vocab.json"
SPLIT_FILES = {TRAIN: "Diving48_V2_train.json", TEST: "Diving48_V2_test.json"}
VIDEO_FOLDER = "rgb"
OFFICIAL_COUNTS = ((TRAIN, 15_027), (TEST, 1_970))
_FILE_FOLDERS = ("", "annotations/")


def read_diving48(root: Path, sources: Sources) -> Annotations:
    """Read the data set in `root`.

    Raises:
        DataError: A file is missing or empty, or an entry is wrong: it lacks a key, its label is
            out of range, its name leaves the data root or stands twice. The message names it.
    """
    vocabulary = _read_vocabulary(_find(root, VOCABULARY_FILE, sources.class_file))
    videos = VideoPaths(root, sources, (VIDEO_FOLDER, "videos"))
    chosen = {TRAIN: sources.train_file, TEST: sources.test_file}
    clips: list[AnnotatedClip] = []
    for split, name in SPLIT_FILES.items():
        path = _find(root, name, chosen[split])
        clips += _read_split(path, split, len(vocabulary), videos)
    return Annotations(
        tuple(" ".join(entry) for entry in vocabulary),
        ATTRIBUTE_NAMES,
        vocabulary,
        tuple(clips),
        video_folders=(videos.folder,),
        official_counts=OFFICIAL_COUNTS,
    )


def _find(root: Path, name: str, chosen: str | None) -> Path:
    return find_file(root, [chosen] if chosen else [f + name for f in _FILE_FOLDERS], name)


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], ...]:
    """Class attributes by label."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a list of classes, found {type(entries).__name__}")
    for number, entry in enumerate(entries):
        is_strings = isinstance(entry, list) and all(isinstance(part, str) for part in entry)
        if not is_strings or len(entry) != len(ATTRIBUTE_NAMES):
            raise DataError(
                f"{path}: entry {number} is {entry!r}; "
                f"expected four strings {list(ATTRIBUTE_NAMES)}"
            )
        for part in entry:
            check_text(part, "class name", f"{path}: entry {number}")
    return tuple(tuple(entry) for entry in entries)


def _read_split(
    path: Path, split: str, num_classes: int, videos: VideoPaths
) -> list[AnnotatedClip]:
    """The clips of one split file."""
    items = read_items(path, split)
    clips = [_read_item(path, n, item, split, num_classes, videos) for n, item in enumerate(items)]
    refuse_repeats(clips, path)
    return clips


def _read_item(
    path: Path, number: int, item: Any, split: str, num_classes: int, videos: VideoPaths
) -> AnnotatedClip:
    where = f"{path}: item {number}"
    if not isinstance(item, dict) or not isinstance(item.get("vid_name"), str):
        raise DataError(f"{where} is {item!r}; expected an object with vid_name and label")
    name = item["vid_name"]
    label = item.get("label")
    if not isinstance(label, int) or isinstance(label, bool):
        raise DataError(f"{where} ({name}): label is {label!r}; expected a whole number")
    if not 0 <= label < num_classes:
        raise DataError(
            f"{where} ({name}): label {label} is out of range; "
            f"{VOCABULARY_FILE} has classes 0 to {num_classes - 1}"
        )
    start, end = item.get("start_frame"), item.get("end_frame")
    check_frames(start, end, f"{where} ({name})")
    video, _ = videos.find(f"{name}.mp4", where)
    source, underscore, _ = name.rpartition("_")
    group = source if underscore and source else name
    return AnnotatedClip(name, video, label, split, start, end, group=group)
