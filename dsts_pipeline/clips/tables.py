"""Tables as people write them: one reader for clips and for the labels of imported features.

Enters: a CSV file in UTF-8, with or without byte-order mark, cells parted by comma, semicolon or
tab, whichever the first line has most of; that line names the columns. Leaves: a row at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import TEST, TRAIN, VAL

SPLIT_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "testing": TEST,
}
_DELIMITERS = ",;\t"


def find_split(word: str) -> str | None:
    """The split that `word` means, in any case; None if it means none.

    >>> find_split("Training"), find_split("eval")
    ('train', None)
    """
    return SPLIT_WORDS.get(word.strip().lower())


def read_split_cell(word: str, place: str) -> str:
    """The split that a cell names.

    Raises:
        DataError: It names none.
    """
    split = find_split(word)
    if split is None:
        raise DataError(
            f"{place}: split is {word!r}; expected train, val or test (or training, valid, "
            "validation, testing, in any case)"
        )
    return split


def read_table(
    path: Path, check_columns: Callable[[list[str]], None], *, missing: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table: where each stands, for errors, and its cells by column.

    Args:
        check_columns: Called with the columns' names; raises where they won't do.
        missing: What was expected, if there is no file.

    Raises:
        DataError: There is no such file, it is no CSV file in UTF-8, a column stands twice or has
            no name, a row has more or fewer cells than there are columns.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(_DELIMITERS, key=header.count)
            columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
            _check_names(columns, path)
            check_columns(columns)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                place = f"{path}: line {reader.line_num + 1}"
                if len(cells) != len(columns):
                    if not cells:
                        continue  # an empty line
                    raise DataError(
                        f"{place}: {len(cells)} cells; expected {len(columns)}, as the first line "
                        "has; quote cells that hold the delimiter"
                    )
                for name, cell in zip(columns, cells, strict=True):
                    if name[:1] != "_" and ("\n" in cell or "\r" in cell):
                        raise DataError(
                            f"{place}: the cell of {name} goes over several lines; close the quote "
                            "that opens it"
                        )
                cells = [cell.strip() for cell in cells]
                if cells == columns:
                    raise DataError(f"{place}: the names of the columns again; remove the line")
                yield place, dict(zip(columns, cells, strict=True))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {missing}") from None
    except csv.Error as error:
        raise DataError(
            f"{path}: the table can't be taken apart ({error}); a quote that opens a cell has to "
            "be closed behind it, and one within a cell is written twice"
        ) from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{path}: not a file in UTF-8 ({error}); save it as one") from None


def _check_names(columns: list[str], path: Path) -> None:
    for number, name in enumerate(columns, 1):
        if columns.count(name) > 1 and name:
            raise DataError(f"{path}: column {name!r} stands twice; remove one")
        if not name and len(columns) > 1:
            raise DataError(
                f"{path}: column {number} has no name; name it, or write the table without it "
                "(pandas: to_csv(..., index=False))"
            )
