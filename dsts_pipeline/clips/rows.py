"""Clips with labels as people write them, names or numbers, in; `Annotations` out.

What the readers of folders, CSV files and mmaction2's lists have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    VAL,
    AnnotatedClip,
    Annotations,
    Sources,
    UnusableClip,
    check_text,
)
from dsts_pipeline.clips.labels import normalize_name, number_labels

_NUMBERED = re.compile(r"(\d{1,6})[\s,;:]+(\S.*)", re.ASCII)
_ORDER = {TRAIN: 0, VAL: 1, TEST: 2}


@dataclass(frozen=True, slots=True)
class Row:
    """A clip whose class has no number yet.

    Attributes:
        clip: The clip; its label is of no account.
        label: Name or number of its class, as written.
        place: Where it stands, for errors.
    """

    clip: AnnotatedClip
    label: str
    place: str


def build_annotations(
    rows: Sequence[Row],
    *,
    class_names: Sequence[str] | None,
    video_folders: tuple[str, ...],
    unsplit: str,
    unusable: Sequence[UnusableClip] = (),
    notes: Sequence[str] = (),
) -> Annotations:
    """Number the labels and put the splits in order.

    A data set with a "val" split and no "test" split is evaluated on "val", which therefore becomes
    "test", as papers do with Kinetics and Something-Something.

    Args:
        class_names: Names by class number; None: see `number_labels`.
        unsplit: What to say where all clips are of the split "train".
        unusable, notes: See `Annotations`.

    Raises:
        DataError: A label is empty, unknown or out of range, a split names a clip twice.
    """
    splits = {row.clip.split for row in rows} | {clip.split for clip in unusable}
    renamed = {VAL: TEST} if TEST not in splits else {}
    places: dict[str, str] = {}
    for row in rows:
        places.setdefault(row.label, row.place)
    labels = number_labels(places, class_names)
    clips = [
        replace(
            row.clip,
            label=labels.numbers[row.label],
            split=renamed.get(row.clip.split, row.clip.split),
        )
        for row in rows
    ]
    seen: dict[tuple[str, str], str] = {}
    for clip, row in zip(clips, rows, strict=True):
        first = seen.setdefault((clip.split, clip.id), row.place)
        if first != row.place:
            raise DataError(
                f"{row.place}: clip {clip.id!r} stands again in the {clip.split} split (first: "
                f"{first}); remove one or give them ids of their own"
            )
    clips.sort(key=lambda clip: _ORDER[clip.split])
    return Annotations(
        labels.class_names,
        (),
        (),
        tuple(clips),
        video_folders=video_folders,
        unusable=tuple(
            replace(clip, split=renamed.get(clip.split, clip.split)) for clip in unusable
        ),
        notes=(*notes, *labels.notes),
        unsplit="" if splits & {VAL, TEST} else unsplit,
    )


def read_class_names(root: Path, sources: Sources, default: str = "") -> tuple[str, ...] | None:
    """Names by class number from a text file, one a line; None where there is no such file.

    Where every line begins with its class number, as in "0 jump", the numbers count, not the lines.

    Args:
        default: File below `root` that is read, if it is there, where `class_file` names none.

    Raises:
        DataError: The file that `class_file` names is missing, a line is empty or stands twice, or
            the lines are numbered from 1.
    """
    if not sources.class_file and not (default and (root / default).is_file()):
        return None
    path = root / (sources.class_file or default)
    names = _take_numbers(path, [normalize_name(line) for line in read_lines(path)])
    if not all(names) or not names:
        where = f"line {names.index('') + 1} is" if names else "it is"
        raise DataError(f"{path}: {where} empty; expected one class name a line")
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        check_text(name, "class name", f"{path}: line {number}")
        if first.setdefault(name, number) != number:
            raise DataError(
                f"{path}: class {name!r} stands in lines {first[name]} and {number}; remove one"
            )
    return tuple(names)


def _take_numbers(path: Path, names: list[str]) -> list[str]:
    """The names without the numbers before them, by number; as they are where they have none."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    numbered = {int(match[1]): match[2] for match in found if match}
    if len(names) < 2 or len(numbered) < len(names):
        return names
    if numbered.keys() == set(range(1, len(names) + 1)):
        raise DataError(
            f"{path}: its lines are numbered from 1 to {len(names)}, and class numbers count from "
            "0; remove the numbers, and subtract 1 from labels that are numbers"
        )
    if numbered.keys() != set(range(len(names))):
        return names
    return [numbered[number] for number in range(len(names))]


def read_lines(path: Path) -> list[str]:
    """Lines without surrounding space; empty ones at the end are left out.

    Raises:
        DataError: The file is missing or no UTF-8 text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: no such file; correct the setting that names it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    while lines and not lines[-1]:
        lines.pop()
    return lines
