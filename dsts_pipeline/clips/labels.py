"""Labels as people write them, names or numbers, in; class numbers out.

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
from dataclasses import dataclass

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import check_text

MAX_CLASSES = 100_000
_MAX_DIGITS = 18  # more are a mistake, and Python refuses thousands
_WHOLE = re.compile(r"(\d+)(?:\.0*)?", re.ASCII)
_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_MISSING = {"nan", "<na>", "inf", "+inf", "-inf"}


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
    numbers = {label: parse_whole_number(label) for label in places}
    if all(number is not None for number in numbers.values()):
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
    names = [label for label in places if parse_whole_number(label) is None]
    digits = [label for label in places if parse_whole_number(label) is not None]
    for label in digits:
        if "." in label:
            raise DataError(
                f"{places[label]}: the label {label!r} is a number, and {names[0]!r} "
                f"({places[names[0]]}) is a name; expected all labels to be one or the other"
            )
    notes: tuple[str, ...] = ()
    if digits:
        notes = (
            f"labels are names, sorted as text ('10' before '2'): {len(digits)} of {len(places)} "
            f"are numbers, but not {names[0]!r} ({places[names[0]]})",
        )
    spellings: dict[str, list[str]] = {}
    for label in places:
        spellings.setdefault(normalize_name(label), []).append(label)
    notes += tuple(
        f"one class of several spellings, which differ in space around them or in Unicode's form: "
        f"{', '.join(map(ascii, labels))}"
        for labels in spellings.values()
        if len(labels) > 1
    )
    classes = tuple(sorted(spellings))
    by_name = {name: number for number, name in enumerate(classes)}
    found = {label: by_name[normalize_name(label)] for label in places}
    return NumberedLabels(classes, found, False, notes)


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
