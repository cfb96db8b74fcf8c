"""labels.csv of features made elsewhere: which clip has which class and split.

Enters: a CSV file with the columns `id` (or `path`), `label`, `split` and perhaps `view`. Leaves:
a `LabelTable`. Labels are class numbers if all of them are whole numbers, else names, whose
numbers follow their order in the alphabet.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsts_pipeline.base.errors import DataError

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
    """All rows in the file's order, and the classes; `numbered`: the labels were numbers."""

    rows: tuple[LabelRow, ...]
    class_names: tuple[str, ...]
    numbered: bool


def read_labels(path: str | Path) -> LabelTable:
    """Read and check a labels file.

    Raises:
        DataError: missing, without a needed column, empty, or a row that is wrong; names its line.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(path, header)
            lines = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give --labels a CSV file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if not lines:
        raise DataError(f"{path}: no row below the header; expected one per clip")
    numbered = all((row["label"] or "").strip().isdecimal() for _, row in lines)
    names = {(row["label"] or "").strip() for _, row in lines}
    if numbered:
        class_names = tuple(map(str, range(_count_classes(path, names))))
    else:
        class_names = tuple(sorted(names))
    numbers = {name: number for number, name in enumerate(class_names)}
    rows: list[LabelRow] = []
    seen: dict[tuple[str, int], int] = {}
    for line, values in lines:
        row = _parse(f"{path}: line {line}", values, numbers, numbered)
        key = row.id, row.view
        if key in seen:
            raise DataError(
                f"{path}: line {line}: clip {row.id} view {row.view} was in line {seen[key]} "
                "already; expected each once"
            )
        seen[key] = line
        rows.append(row)
    return LabelTable(tuple(rows), class_names, numbered)


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in ("label", "split") if name not in header]
    if "id" not in header and "path" not in header:
        missing.insert(0, "id (or path)")
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}, "
            "expected id (or path), label, split and perhaps view"
        )


def _count_classes(path: Path, names: set[str]) -> int:
    largest = max(int(name) for name in names)
    if largest >= MAX_CLASSES:
        raise DataError(f"{path}: label {largest} is no class number; expected 0 to 65535")
    return largest + 1


def _parse(
    where: str, values: dict[str, str | None], numbers: dict[str, int], numbered: bool
) -> LabelRow:
    texts = {name: (text or "").strip() for name, text in values.items() if isinstance(name, str)}
    if None in values or None in values.values():
        raise DataError(f"{where}: not as many fields as the header has; quote fields with commas")
    for name in ("label", "split"):
        if not texts[name]:
            raise DataError(f"{where}: no {name}")
    path, view = texts.get("path") or None, texts.get("view") or "0"
    clip = texts.get("id") or (path and _drop_suffix(path)) or ""
    if not clip:
        raise DataError(f"{where}: neither id nor path")
    if path and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
        raise DataError(f"{where}: path {path} leaves the source folder; expected one inside it")
    if not view.isdecimal():
        raise DataError(f"{where}: view {view}, expected a number from 0")
    label = numbers[str(int(texts["label"])) if numbered else texts["label"]]
    return LabelRow(clip, path, label, texts["split"], int(view))


def _drop_suffix(path: str) -> str:
    return str(PurePosixPath(path).with_suffix("")) if path.endswith(SUFFIXES) else path
