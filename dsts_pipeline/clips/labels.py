"""Labels as people write them, names or numbers, in; class numbers and `Annotations` out.

One rule for folders, tables, lists and the labels of imported features:

- Labels that are all whole numbers from 0 are class numbers. "3.0" is one, too: pandas writes so
  as soon as a cell of the column is empty.
- A negative number, a fraction, another numeral or a missing value (nan) is an error, unless the
  file of classes has a class of that name.
- Anything else is a name. Names count in sorted order, or in that of the file of classes, by which
  numbers are allowed beside names. Names are compared in Unicode's form NFC: "é" is one letter or
  two, depending on the system that wrote it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
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

MAX_CLASSES = 100_000
_MAX_DIGITS = 18  # more are a mistake, and Python refuses thousands
_WHOLE = re.compile(r"(\d+)(?:\.0*)?", re.ASCII)
_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_MISSING = {"nan", "<na>", "inf", "+inf", "-inf"}
_NUMBERED_LINE = re.compile(r"(\d{1,6})[\s,;:]+(\S.*)", re.ASCII)
_ORDER = {TRAIN: 0, VAL: 1, TEST: 2}


@dataclass(frozen=True)
class NumberedLabels:
    """What labels mean.

    Attributes:
        class_names: Name by class number.
        numbers: Class number by label as written.
        are_numbers: Whether all labels were numbers.
        notes: What a person should know, in sentences.
    """

    class_names: tuple[str, ...]
    numbers: dict[str, int]
    are_numbers: bool
    notes: tuple[str, ...] = ()


def parse_whole_number(text: str) -> int | None:
    """The whole number >= 0 that `text` is, such as 3 for "3" and "3.0"; None if it is none.

    >>> parse_whole_number("3.0"), parse_whole_number("3.5"), parse_whole_number("-1")
    (3, None, None)
    """
    found = _WHOLE.fullmatch(text)
    return int(found[1]) if found and len(found[1]) <= _MAX_DIGITS else None


def is_numeral(text: str) -> bool:
    """Whether `text` is a number of any kind."""
    return _NUMERAL.fullmatch(text) is not None


def normalize_name(name: str) -> str:
    """A class name without surrounding space, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", name.strip())


def number_labels(
    places: Mapping[str, str],
    class_names: Sequence[str] | None = None,
    *,
    max_classes: int = MAX_CLASSES,
) -> NumberedLabels:
    """Give every label its class number, by the rule at the top of this file.

    Args:
        places: Where each label that occurs stands first, for errors.
        class_names: Names by class number; None: they follow from the labels.
        max_classes: A number must be below it.

    Raises:
        DataError: A label is empty, no class, or holds a control character; names its place.
    """
    for label, place in places.items():
        if not label.strip():
            raise DataError(f"{place}: the label is empty; expected a class")
        check_text(label, "label", place)
    if class_names is not None:
        return _look_up(places, class_names)
    for label, place in places.items():
        _refuse_no_class(label, place)
    if all(parse_whole_number(label) is not None for label in places):
        return _take_numbers(places, max_classes)
    return _sort_names(places)


def _refuse_no_class(label: str, place: str) -> None:
    """Refuse a number that is no class number, and a missing value."""
    if parse_whole_number(label) is not None:
        return
    if label.lower() in _MISSING:
        raise DataError(f"{place}: the label is {label!r}, a missing value; expected a class")
    if is_numeral(label):
        kind = "a negative number" if label[0] == "-" else "no whole number"
        raise DataError(
            f"{place}: the label is {label!r}, {kind}; expected a class number from 0, or a name. "
            "Correct or remove the row; if it is the name of a class, list all names in a file of "
            "classes (classes.txt, or dataset.class_file)"
        )


def _take_numbers(places: Mapping[str, str], max_classes: int) -> NumberedLabels:
    numbers = {label: parse_whole_number(label) or 0 for label in places}
    highest = max(numbers, key=lambda label: numbers[label], default="")
    if highest and numbers[highest] >= max_classes:
        raise DataError(
            f"{places[highest]}: class number {highest}; expected less than {max_classes:,}"
        )
    count = 1 + max(numbers.values(), default=-1)
    return NumberedLabels(
        tuple(map(str, range(count))), numbers, True, _note_start(numbers.values())
    )


def _note_start(numbers: Collection[int]) -> tuple[str, ...]:
    """A remark if class numbers seem to count from 1."""
    if not numbers or min(numbers) != 1:
        return ()
    return (
        f"labels run from 1 to {max(numbers)}, and class 0 never occurs: class numbers count from "
        "0, and the labels were taken as they are; if they count from 1, subtract 1 in the file",
    )


def _sort_names(places: Mapping[str, str]) -> NumberedLabels:
    """Names in sorted order; plain numbers among them are names, "1.0" is an error."""
    name = next(label for label in places if parse_whole_number(label) is None)
    digits = [label for label in places if parse_whole_number(label) is not None]
    for label in digits:
        if "." in label:
            raise DataError(
                f"{places[label]}: the label {label!r} is a number, and {name!r} ({places[name]}) "
                "is a name; expected all labels to be one or the other"
            )
    notes = []
    if digits:
        notes.append(
            f"labels are names, sorted as text ('10' before '2'): {len(digits)} of {len(places)} "
            f"are numbers, but not {name!r} ({places[name]})"
        )
    spellings: dict[str, list[str]] = {}
    for label in places:
        spellings.setdefault(normalize_name(label), []).append(label)
    notes += [
        f"one class of several spellings, which differ in space around them or in Unicode's form: "
        f"{', '.join(map(ascii, labels))}"
        for labels in spellings.values()
        if len(labels) > 1
    ]
    classes = tuple(sorted(spellings))
    found = {label: n for n, name in enumerate(classes) for label in spellings[name]}
    return NumberedLabels(classes, found, False, tuple(notes))


def _look_up(places: Mapping[str, str], class_names: Sequence[str]) -> NumberedLabels:
    """Labels by the names of a file of classes, or by number.

    Where classes are themselves called by numbers, a label is a name: as a number it might mean
    another class.
    """
    by_name = {normalize_name(name): number for number, name in enumerate(class_names)}
    takes_numbers = not any(is_numeral(name) for name in by_name)
    numbers: dict[str, int] = {}
    by_number: list[int] = []
    for label, place in places.items():
        whole = parse_whole_number(label)
        number = by_name.get(normalize_name(label))
        if number is None and whole is not None:
            number = by_name.get(str(whole))
            if number is None and takes_numbers and whole < len(class_names):
                number = whole
                by_number.append(whole)
        if number is None:
            raise DataError(_unknown(label, place, places, len(class_names), takes_numbers))
        numbers[label] = number
    are_numbers = bool(by_number) and len(by_number) == len(numbers)
    notes = _note_start(by_number) if are_numbers else ()
    return NumberedLabels(tuple(class_names), numbers, are_numbers, notes)


def _unknown(
    label: str, place: str, places: Mapping[str, str], num_classes: int, takes_numbers: bool
) -> str:
    if not takes_numbers:
        return (
            f"{place}: label {label!r} is none of the {num_classes} classes, which are called by "
            "numbers themselves; correct it or the class file"
        )
    numbers = {parse_whole_number(other) for other in places}
    counts_from_1 = None not in numbers and 0 not in numbers and num_classes in numbers
    hint = (
        ". Class numbers count from 0; if these count from 1, subtract 1" if counts_from_1 else ""
    )
    return (
        f"{place}: label {label!r} is neither one of the {num_classes} classes nor a number from 0 "
        f"to {num_classes - 1}; correct it or the class file{hint}"
    )


# ---- annotated clips of folders, tables and lists ------------------------------------------------


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


def read_class_names(
    root: Path, sources: Sources, default: str = "classes.txt"
) -> tuple[str, ...] | None:
    """Names by class number from a text file, one a line; None where there is no such file.

    Where every line begins with its class number, as in "0 jump", the numbers count, not the lines.

    Args:
        default: File below `root` that is read, if it is there, where `class_file` names none.

    Raises:
        DataError: The file that `class_file` names is missing, a line is empty or stands twice, or
            the lines are numbered from 1.
    """
    if not sources.class_file and not (root / default).is_file():
        return None
    path = root / (sources.class_file or default)
    names = _drop_numbers(path, [normalize_name(line) for line in read_lines(path)])
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


def _drop_numbers(path: Path, names: list[str]) -> list[str]:
    """The names without the numbers before them, by number; as they are where they have none."""
    found = [_NUMBERED_LINE.fullmatch(name) for name in names]
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
