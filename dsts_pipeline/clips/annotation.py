"""What annotation files say, before any video is looked at, and where readers look for the files.

Enters: nothing. Leaves: the types that every reader of `clips/` returns, and the check that a file
name out of an annotation stays in the data root.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_file

TRAIN, VAL, TEST, UNLABELLED = "train", "val", "test", "unlabelled"
NO_LABEL = -1
VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split()
)


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
    """

    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]
    clips: tuple[AnnotatedClip, ...]
    unlabelled: tuple[AnnotatedClip, ...] = ()
    video_folders: tuple[str, ...] = ()
    official_counts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Sources:
    """Names that replace a format's own, each relative to the data root; None: the format's."""

    video_folder: str | None = None
    train_file: str | None = None
    test_file: str | None = None
    class_file: str | None = None


def check_inside_root(path: str, source: str) -> str:
    """Return `path`, tidied, if it is relative and cannot leave the data root.

    Args:
        path: A file name out of an annotation, with forward slashes.
        source: What to call the entry in an error.

    Raises:
        DataError: It is empty, absolute, climbs with "..", or holds a backslash or a NUL.
    """
    parts = path.split("/")
    if ".." in parts or path[:1] == "/" or "\\" in path or "\x00" in path:
        raise DataError(
            f"{source}: file name {path!r} leads out of the data root; expected a name inside it, "
            "with forward slashes"
        )
    tidy = [part for part in parts if part not in ("", ".")]
    if not tidy:
        raise DataError(f"{source}: the file name is empty; expected the name of a video")
    return path if len(tidy) == len(parts) else "/".join(tidy)


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


def find_folder(root: Path, names: Iterable[str]) -> str:
    """The first of `names` that is a folder below `root`, else the first of all."""
    names = list(names)
    return next((name for name in names if (root / name).is_dir()), names[0])


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


def expect_list(items: Any, path: Path, split: str) -> list[Any]:
    """`items`, if it is a list with something in it.

    Raises:
        DataError: It is empty or of another kind.
    """
    if not isinstance(items, list):
        raise DataError(f"{path}: found {type(items).__name__}, expected a list of clips")
    if not items:
        raise DataError(f"{path}: the {split} split is empty; expected a list of clips")
    return items
