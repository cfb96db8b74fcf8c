"""Something-Something v2's annotation files.

Enters: a folder as published: `<id>.webm` videos; `train.json` and `validation.json`, lists of
`{"id", "label", "template", "placeholders"}`; `test.json`, a list of `{"id"}`; `labels.json`, class
numbers (as text) by name. All files also go by `something-something-v2-NAME.json` and may lie in
`labels/` or `annotations/`. Leaves: `Annotations`.

A clip's class is its template with the brackets taken away, looked up in the labels: "Putting
[something] on [something]" is "Putting something on something". The validation split, which has
labels and is what papers report, becomes the split "test"; the official test split, which has
none, is listed as "unlabelled".

Source: https://arxiv.org/abs/1706.04261 and the data set's download page.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
    refuse_repeats,
)

VIDEO_FOLDERS = ("20bn-something-something-v2", "videos", ".")
FILE_FOLDERS = ("", "labels/", "annotations/")
OFFICIAL_COUNTS = ((TRAIN, 168_913), (TEST, 24_777), (UNLABELLED, 27_157))
_KEPT_KEYS = ("id", "template")  # of an item; the rest would fill memory


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
    for number, item in enumerate(iterate_items(path, _keep_needed)):
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: item {number} is {item!r}; expected an object with a text id")
        where = f"{path}: item {number} (id {name})"
        label = NO_LABEL if numbers is None else _look_up(item.get("template"), numbers, where)
        clips.append(AnnotatedClip(name, videos.find(f"{name}.webm", where)[0], label, split))
    if not clips:
        raise DataError(f"{path}: the {split} split is empty; expected a list of clips")
    refuse_repeats(clips, path)
    return clips


def _keep_needed(item: dict[str, Any]) -> dict[str, Any]:
    return {key: item[key] for key in _KEPT_KEYS if key in item}


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


# ---- a long JSON list, item by item: of a file of 100 MB only a block is in memory at a time -----

_BLOCK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


def iterate_items(
    path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Iterator[Any]:
    """The items of the list in `path`; `object_hook` as in `json.loads`.

    Raises:
        DataError: The file is missing, is no JSON, or holds something else than a list.
    """
    try:
        with open(path, "rb") as file:
            yield from _Scanner(path, file, object_hook).items()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a JSON list there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); replace it by a sound copy") from None


class _Scanner:
    def __init__(self, path: Path, file: BinaryIO, object_hook: Any) -> None:
        self._path, self._file = path, file
        self._to_text = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder(object_hook=object_hook).raw_decode
        self._text, self._at, self._ended = "", 0, False

    def items(self) -> Iterator[Any]:
        if self._next_character() != "[":
            kind = type(json.loads(self._rest())).__name__
            raise DataError(f"{self._path}: found {kind}, expected a list of clips")
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
        else:
            while True:
                yield self._item()
                self._at += 1
                if self._text[self._at - 1] == "]":
                    break
        if self._next_character():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _item(self) -> Any:
        """The next item; leaves `_at` at the comma or bracket behind it."""
        self._next_character()
        while True:
            try:
                item, end = self._decode(self._text, self._at)
                end = _SPACE.match(self._text, end).end()  # type: ignore[union-attr]
                if end < len(self._text):  # what follows is seen: the item is whole
                    if self._text[end] not in ",]":
                        raise json.JSONDecodeError("Expecting ',' delimiter", self._text, end)
                    self._at = end
                    return item
                if self._ended:
                    raise json.JSONDecodeError("Expecting ',' delimiter", self._text, end)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            self._read_block()

    def _next_character(self) -> str:
        """Skip space; the character there, or "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_block()

    def _read_block(self) -> None:
        block = self._file.read(_BLOCK_BYTES)
        self._ended = not block
        self._text = self._text[self._at :] + self._to_text.decode(block, final=self._ended)
        self._at = 0

    def _rest(self) -> str:
        while not self._ended:
            self._read_block()
        return self._text
