"""labels.csv of features made elsewhere: which clip has which class and split.

Enters: a CSV file (see `clips.tables`) with the columns `id` (or `path`), `label`, `split` and
perhaps `view`; others are left alone. Leaves: a `LabelTable`. Labels and splits are read as those
of clips are (see `clips.labels`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import TEST, TRAIN, check_text
from dsts_pipeline.clips.labels import number_labels, parse_whole_number
from dsts_pipeline.clips.tables import read_split_cell, read_table

MAX_CLASSES = 2**16
SUFFIXES = (".npy", ".npz", ".pt", ".pth")


@dataclass(frozen=True)
class LabelRow:
    """One row: a view of a clip.

    Attributes:
        id: the clip. path: its file inside the source, None if the id tells.
        label: class number. split: such as "train". view: from 0.
    """

    id: str
    path: str | None
    label: int
    split: str
    view: int


@dataclass(frozen=True)
class LabelTable:
    """All rows in the file's order, and the classes.

    `numbered`: the labels were numbers. `notes`: what a person should know, in sentences.
    """

    rows: tuple[LabelRow, ...]
    class_names: tuple[str, ...]
    numbered: bool
    notes: tuple[str, ...] = ()


def read_labels(path: str | Path) -> LabelTable:
    """Read and check a labels file.

    Raises:
        DataError: missing, without a needed column, empty, or a row that is wrong; names its line.
    """
    path = Path(path)
    check = functools.partial(_check_header, path)
    lines = list(read_table(path, check, missing="a CSV file; give one to --labels"))
    if not lines:
        raise DataError(f"{path}: no row below the header; expected one per clip")
    places: dict[str, str] = {}
    for place, values in lines:
        places.setdefault(values["label"], place)
    labels = number_labels(places, max_classes=MAX_CLASSES)
    rows: list[LabelRow] = []
    seen: dict[tuple[str, int], str] = {}
    for place, values in lines:
        row = _parse(place, values, labels.numbers[values["label"]])
        key = row.id, row.view
        if key in seen:
            raise DataError(
                f"{place}: clip {row.id} view {row.view} was in {seen[key]} already; expected "
                "each once"
            )
        seen[key] = place.removeprefix(f"{path}: ")
        rows.append(row)
    notes = [*labels.notes]
    notes += [
        f"no clip is of the split {split}"
        for split in (TRAIN, TEST)
        if all(row.split != split for row in rows)
    ]
    return LabelTable(tuple(rows), labels.class_names, labels.are_numbers, tuple(notes))


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in ("label", "split") if name not in header]
    if "id" not in header and "path" not in header:
        missing.insert(0, "id (or path)")
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}, "
            "expected id (or path), label, split and perhaps view"
        )


def _parse(where: str, values: dict[str, str], label: int) -> LabelRow:
    path, view = values.get("path") or None, values.get("view") or "0"
    clip = values.get("id") or (path and _drop_suffix(path)) or ""
    if not clip:
        raise DataError(f"{where}: neither id nor path")
    check_text(clip, "id", where)
    if path and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
        raise DataError(f"{where}: path {path} leaves the source folder; expected one inside it")
    number = parse_whole_number(view)
    if number is None:
        raise DataError(f"{where}: view {view}, expected a number from 0")
    return LabelRow(clip, path, label, read_split_cell(values["split"], where), number)


def _drop_suffix(path: str) -> str:
    return str(PurePosixPath(path).with_suffix("")) if path.endswith(SUFFIXES) else path
