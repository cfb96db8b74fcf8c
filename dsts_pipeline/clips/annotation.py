"""What annotation files say, before any video is looked at, and where readers look for the files.

Enters: nothing. Leaves: the types that every reader of `clips/` returns, and the rules that hold in
all of them: which texts may be names, and where the file of a name lies.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, sha256_file

TRAIN, VAL, TEST, UNLABELLED = "train", "val", "test", "unlabelled"
NO_LABEL = -1
VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split()
)
# Not text: control characters, line ends, halves of surrogate pairs (how Python spells bytes that
# are no UTF-8), non-characters, and what turns the direction of the text around it. JSON, SVG, a
# page or a terminal can't take one or the other of them.
_NO_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def name_clip(split: str, clip_id: str) -> str:
    """How a clip is named in messages and findings: its split, unless its id begins with it."""
    return clip_id if clip_id.startswith(f"{split}/") else f"{split}/{clip_id}"


@dataclass(frozen=True, slots=True)
class AnnotatedClip:
    """A clip as annotated; its video has not been looked at.

    Attributes:
        id: Name in the data set.
        path: Video file relative to the data root.
        label: Class number; `NO_LABEL` in the split "unlabelled".
        split: "train", "val" (to choose settings by), "test" (the labelled part that results are
            reported on) or "unlabelled".
        start_frame: First frame of the clip; None: the file's first.
        end_frame: Its end as the file says it, see `dataset.end_frame`; None: the file's end.
        start_seconds, end_seconds: The same in seconds, half-open.
        group: What clips of one origin share, such as the source video or the performer.
    """

    id: str
    path: str
    label: int
    split: str
    start_frame: int | None = None
    end_frame: int | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class UnusableClip:
    """A clip that is there and can't be named: the name of its file is no text.

    `id` and `path` are written so that they can be printed, see `printable`.
    """

    id: str
    path: str
    split: str
    reason: str


@dataclass(frozen=True)
class Annotations:
    """What a data set's annotation files say.

    Attributes:
        class_names: Name by class number.
        attribute_names, attributes: Per-class attributes, or empty.
        clips: Train first, then val where there is one, then test, in file order.
        unlabelled: Clips of a split whose labels are not published; see `read_annotations`.
        video_folders: Where this data set's videos lie, relative to the root; files there that no
            annotation names are reported as extra.
        official_counts: Clips by split as published, or empty.
        unusable: Clips that nothing can be done with, whatever their video holds.
        notes: What a person should know of how the files were read, in sentences.
        unsplit: Why no clip is of the split "test", if none is.
    """

    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]
    clips: tuple[AnnotatedClip, ...]
    unlabelled: tuple[AnnotatedClip, ...] = ()
    video_folders: tuple[str, ...] = ()
    official_counts: tuple[tuple[str, int], ...] = ()
    unusable: tuple[UnusableClip, ...] = ()
    notes: tuple[str, ...] = ()
    unsplit: str = ""


@dataclass(frozen=True)
class Sources:
    """Names that replace a format's own, each relative to the data root; None: the format's.

    `allow_outside_root`: whether videos may lie elsewhere.
    """

    video_folder: str | None = None
    train_file: str | None = None
    test_file: str | None = None
    class_file: str | None = None
    allow_outside_root: bool = False


def is_text(name: str) -> bool:
    """Whether `name` can be written everywhere: no control character, no byte that isn't UTF-8."""
    return _NO_TEXT.search(name) is None


def is_utf8(name: str) -> bool:
    """Whether the bytes of a file's name are UTF-8: Python spells others as surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def printable(name: str) -> str:
    """`name` with what is no text written as a Python escape, such as `caf\\xe9.mp4`."""
    if is_text(name):
        return name
    text = name.encode("utf-8", "surrogateescape" if _is_bytes(name) else "surrogatepass")
    letters = text.decode("utf-8", "backslashreplace")
    return _NO_TEXT.sub(lambda found: ascii(found[0])[1:-1], letters)


def _is_bytes(name: str) -> bool:
    """Whether the surrogates in `name` all stand for bytes of a file name."""
    return all("\udc80" <= sign <= "\udcff" for sign in name if "\ud800" <= sign <= "\udfff")


def check_text(name: str, what: str, place: str) -> None:
    """Refuse a name that can't be written everywhere; see `is_text`.

    Args:
        what, place: What it names and where it stands, for the error.

    Raises:
        DataError: It holds a control character or half a surrogate pair.
    """
    if (found := _NO_TEXT.search(name)) is not None:
        kind = (
            "half a surrogate pair" if "\ud800" <= found[0] <= "\udfff" else "a control character"
        )
        raise DataError(
            f"{place}: {what} '{printable(name)}' holds {kind} ({ascii(found[0])[1:-1]}), which "
            "tables, plots and pages can't show; write it without"
        )


class VideoPaths:
    """Where the videos of an annotation's file names lie.

    A name is relative to the folder of videos, or absolute. An absolute one inside the data root,
    also by way of links, is taken as if it were relative to it.

    Args:
        root: Data root.
        sources: Tells the folder of videos, and whether names may lead out of the root.
        usual_folders: Where no folder is told, the first of these that is there, else the first.
    """

    def __init__(self, root: Path, sources: Sources, usual_folders: Sequence[str] = (".",)) -> None:
        self._root = root
        self._allow_outside_root = sources.allow_outside_root
        tops = (os.path.abspath(root), os.path.realpath(root))
        self._tops = [f"{top.rstrip('/')}/" for top in dict.fromkeys(tops)]
        self._real_folder = functools.lru_cache(maxsize=4096)(os.path.realpath)
        self._prefix = ""
        self.folder = "."
        there = (name for name in usual_folders if (root / name).is_dir())
        folder = sources.video_folder or next(there, usual_folders[0])
        if any(part not in ("", ".") for part in folder.split("/")):
            self.folder = self._place(folder, "dataset.video_folder")
            self._prefix = "" if self.folder == "." else f"{self.folder}/"

    def find(self, name: str, source: str) -> tuple[str, str]:
        """Where the video called `name` lies, and what the clip is called unless it has an id.

        Args:
            name: A file name out of an annotation, with forward slashes.
            source: What to call the entry in an error.

        Returns:
            The path relative to the data root (absolute where it lies outside), and the same
            relative to the folder of videos, where it lies there, without its ending.

        Raises:
            DataError: It is empty, leads out of the data root though it may not, or holds "..", a
                backslash or something that is no text.
        """
        check_text(name, "file name", source)
        tidy = _tidy(name)
        if not tidy:
            raise DataError(f"{source}: the file name is empty; expected the name of a video")
        path = self._place(tidy if tidy[0] == "/" else self._prefix + tidy, source, shown=name)
        return path, posixpath.splitext(path.removeprefix(self._prefix))[0]

    def _place(self, name: str, source: str, shown: str | None = None) -> str:
        """`name` relative to the root, or absolute where it lies outside and may."""
        shown = name if shown is None else shown
        if "\\" in name:
            raise DataError(
                f"{source}: file name {shown!r} holds a backslash; expected one with forward "
                "slashes, as in folder/clip.mp4"
            )
        name = self._relative(name) if name[0] == "/" else _tidy(name)
        if self._allow_outside_root or (name[0] != "/" and ".." not in name.split("/")):
            return name
        inside = posixpath.normpath(name)
        if inside[0] != "/" and inside.split("/")[0] != "..":
            raise DataError(
                f"{source}: file name {shown!r} climbs by '..' and stays in the data root; write "
                f"it as {inside!r}"
            )
        raise DataError(
            f"{source}: file name {shown!r} leads out of the data root {self._root}; put the video "
            "there, set dataset.root to where it is, or dataset.allow_outside_root to true"
        )

    def _relative(self, path: str) -> str:
        """An absolute path as one relative to the root, if it lies there."""
        folder, slash, name = path.rpartition("/")
        for candidate in (path, self._real_folder(folder) + slash + name):
            for top in self._tops:
                if f"{candidate}/".startswith(top) and ".." not in candidate.split("/"):
                    return candidate[len(top) :] or "."
        return path


def _tidy(name: str) -> str:
    """`name` without empty parts and dots."""
    if "//" not in name and "." not in name.split("/") and name[-1:] != "/":
        return name
    start = "/" if name[:1] == "/" else ""
    return start + "/".join(part for part in name.split("/") if part not in ("", "."))


def is_video(name: str) -> bool:
    """Whether a file's name ends like a video's."""
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def find_file(root: Path, names: Iterable[str], what: str) -> Path:
    """The one file of `names` that is there.

    Raises:
        DataError: None is there, or several with different content.
    """
    names = list(names)
    found = [root / name for name in names if (root / name).is_file()]
    if not found:
        raise DataError(f"{root}: no {what}; expected {' or '.join(names)} there")
    for other in found[1:]:
        if sha256_file(other) != sha256_file(found[0]):
            raise DataError(
                f"{found[0]} and {other} both hold the {what} and differ; remove the wrong one"
            )
    return found[0]


def refuse_repeats(clips: Iterable[AnnotatedClip], path: Path) -> None:
    """Raise a DataError if one file names a clip twice."""
    seen: dict[str, int] = {}
    for number, clip in enumerate(clips):
        first = seen.setdefault(clip.id, number)
        if first != number:
            raise DataError(
                f"{path}: item {number} names {clip.id!r} again (first: item {first}); "
                "remove one of them"
            )


def check_frames(start: Any, end: Any, where: str) -> None:
    """Raise a DataError unless `start` and `end` are None or make a range of frames.

    An end equal to the start is refused here, whether or not `end` is part of the clip: a video of
    one frame is no clip of an action.
    """
    for bound in (start, end):
        if bound is not None and (type(bound) is not int or bound < 0):
            raise DataError(f"{where}: frame {bound!r}; expected a whole number >= 0")
    if start is not None and end is not None and end <= start:
        raise DataError(f"{where}: end_frame {end} is not after start_frame {start}")


def read_items(path: Path, split: str) -> list[Any]:
    """The list that the JSON file of a split holds.

    Raises:
        DataError: The file is no JSON, holds something else, or the list is empty.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path}: found {type(items).__name__}, expected a list of clips")
    if not items:
        raise DataError(f"{path}: the {split} split is empty; expected a list of clips")
    return items
