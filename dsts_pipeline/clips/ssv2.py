"""Something-Something v2's annotation files.

Enters: a folder as published: `<id>.webm` videos; `train.json` and `validation.json`, lists of
`{"id", "label", "template", "placeholders"}`; `test.json`, a list of `{"id"}`; `labels.json`, class
numbers (as text) by name. All files also go by `something-something-v2-NAME.json` and may lie in
`labels/` or `annotations/`. Leaves: `Annotations`.

A clip's class is its template with the brackets taken away, looked up in the labels: "Putting
[something] on [something]" is "Putting something on something". The validation split, which has
labels and is what papers report, becomes the split "test"; the official test split, which has
none, is listed as "unlabelled".

The published items do not say who performs. An item may have one more key, "group", a text such as
the performer's id: what clips of one origin share.

Source: https://arxiv.org/abs/1706.04261 and the data set's download page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.clips.annotation import (
    NO_LABEL,
    TEST,
    TRAIN,
    UNLABELLED,
    AnnotatedClip,
    Annotations,
    Sources,
    VideoPaths,
    check_text,
    find_file,
    read_items,
    refuse_repeats,
)

VIDEO_FOLDERS = ("20bn-something-something-v2", "videos", ".")
FILE_FOLDERS = ("", "labels/", "annotations/")
OFFICIAL_COUNTS = ((TRAIN, 168_913), (TEST, 24_777), (UNLABELLED, 27_157))


def read_ssv2(root: Path, sources: Sources) -> Annotations:
    """Read the data set in `root`.

    Raises:
        DataError: A file is missing or empty, or an entry is wrong: it lacks its id or template,
            its class is unknown, its name leaves the data root or stands twice. The message names
            it.
    """
    class_names = read_labels(find_file(root, _names("labels", sources.class_file), "labels"))
    numbers = {name: number for number, name in enumerate(class_names)}
    train = find_file(root, _names("train", sources.train_file), "training split")
    test = find_file(root, _names("validation", sources.test_file), "validation split")
    videos = VideoPaths(root, sources, VIDEO_FOLDERS)
    clips = _read_split(train, TRAIN, numbers, videos) + _read_split(test, TEST, numbers, videos)
    unlabelled: list[AnnotatedClip] = []
    if any((root / name).is_file() for name in _names("test")):
        path = find_file(root, _names("test"), "test split")
        unlabelled = _read_split(path, UNLABELLED, None, videos)
    return Annotations(
        class_names,
        (),
        (),
        tuple(clips),
        unlabelled=tuple(unlabelled),
        video_folders=(videos.folder,),
        official_counts=OFFICIAL_COUNTS,
    )


def _names(name: str, chosen: str | None = None) -> list[str]:
    if chosen:
        return [chosen]
    files = (f"{name}.json", f"something-something-v2-{name}.json")
    return [folder + file for folder in FILE_FOLDERS for file in files]


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names by number; the order of the file does not matter."""
    entries = read_json(path)
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path}: expected class numbers by name, found {type(entries).__name__}")
    names: dict[int, str] = {}
    for name, value in entries.items():
        check_text(name, "class name", str(path))
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number and not (isinstance(value, str) and value.isdecimal()):
            raise DataError(f'{path}: class {name!r} has number {value!r}; expected such as "17"')
        other = names.setdefault(int(value), name)
        if other != name:
            raise DataError(f"{path}: classes {other!r} and {name!r} both have number {value}")
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        raise DataError(
            f"{path}: no class has number {missing[0]}; expected 0 to {len(names) - 1}, each once"
        )
    return tuple(names[number] for number in range(len(names)))


def _read_split(
    path: Path, split: str, numbers: dict[str, int] | None, videos: VideoPaths
) -> list[AnnotatedClip]:
    """The clips of one split file; `numbers` None: it has no labels."""
    clips = []
    for number, item in enumerate(read_items(path, split)):
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: item {number} is {item!r}; expected an object with a text id")
        where = f"{path}: item {number} (id {name})"
        label = NO_LABEL if numbers is None else _look_up(item.get("template"), numbers, where)
        video, _ = videos.find(f"{name}.webm", where)
        group = _read_group(item.get("group"), where)
        clips.append(AnnotatedClip(name, video, label, split, group=group))
    refuse_repeats(clips, path)
    return clips


def _read_group(group: Any, where: str) -> str | None:
    """The group of an item, or None where it has none."""
    if group is None:
        return None
    if not isinstance(group, str) or not group:
        raise DataError(f"{where}: its group is {group!r}; expected a text, or no group at all")
    check_text(group, "group", where)
    return group


def _look_up(template: Any, numbers: dict[str, int], where: str) -> int:
    """The class number of a template."""
    if not isinstance(template, str):
        raise DataError(f"{where}: its template is {template!r}; expected a text")
    name = template.replace("[", "").replace("]", "")
    if name not in numbers:
        raise DataError(
            f"{where}: template {template!r} is class {name!r}, which the labels file does not "
            "have; use the labels file of the same release"
        )
    return numbers[name]
