"""Diving48 V2's annotation files.

Layout (http://www.svcl.ucsd.edu/projects/resound/dataset.html, V2): `rgb/<vid_name>.mp4`,
`Diving48_V2_train.json` and `Diving48_V2_test.json` with items
`{"vid_name", "label", "start_frame", "end_frame"}`, and `Diving48_vocab.json`, a list of
[takeoff, somersault, twist, position] whose place in the list is the label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.clips.annotation import AnnotatedClip, check_inside_root

ATTRIBUTE_NAMES = ("takeoff", "somersault", "twist", "position")
VOCABULARY_FILE = "Diving48_vocab.json"
SPLIT_FILES = {"train": "Diving48_V2_train.json", "test": "Diving48_V2_test.json"}
VIDEO_FOLDER = "rgb"


def read_vocabulary(path: Path) -> tuple[tuple[str, ...], ...]:
    """Class attributes by label.

    Raises:
        DataError: The file is missing or holds something else than lists of four strings.
    """
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
    return tuple(tuple(entry) for entry in entries)


def read_split(path: Path, split: str, *, num_classes: int) -> list[AnnotatedClip]:
    """The clips of one split file.

    `start_frame` and `end_frame` are taken as a half-open range.

    Raises:
        DataError: The file is missing or empty, an item lacks a key, a label is out of range, a
            name leaves the data root or stands twice.
    """
    items = read_json(path)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: the {split} split is empty; expected a list of clips")
    clips = [_read_item(path, n, item, split, num_classes) for n, item in enumerate(items)]
    seen: set[str] = set()
    for number, clip in enumerate(clips):
        if clip.id in seen:
            raise DataError(f"{path}: item {number} names {clip.id!r} again; remove one of them")
        seen.add(clip.id)
    return clips


def _read_item(path: Path, number: int, item: Any, split: str, num_classes: int) -> AnnotatedClip:
    where = f"{path}: item {number}"
    if not isinstance(item, dict) or not isinstance(item.get("vid_name"), str):
        raise DataError(f"{where} is {item!r}; expected an object with vid_name and label")
    name, label = item["vid_name"], item.get("label")
    if not isinstance(label, int) or isinstance(label, bool):
        raise DataError(f"{where} ({name}): label is {label!r}; expected a whole number")
    if not 0 <= label < num_classes:
        raise DataError(
            f"{where} ({name}): label {label} is out of range; "
            f"{VOCABULARY_FILE} has classes 0 to {num_classes - 1}"
        )
    start, end = item.get("start_frame"), item.get("end_frame")
    for bound in (start, end):
        if bound is not None and (not isinstance(bound, int) or bound < 0):
            raise DataError(f"{where} ({name}): frame {bound!r}; expected a whole number >= 0")
    if start is not None and end is not None and end <= start:
        raise DataError(f"{where} ({name}): end_frame {end} is not after start_frame {start}")
    video = check_inside_root(f"{VIDEO_FOLDER}/{name}.mp4", where)
    return AnnotatedClip(name, video, label, split, start, end)
