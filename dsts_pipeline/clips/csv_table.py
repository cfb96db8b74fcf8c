"""A table of one's own clips.

Enters: CSV files (comma, semicolon or tab; first line names the columns), either one
`annotations.csv` with a column `split`, or `train.csv` and `test.csv`. Leaves: `Annotations`.

| column | what it holds |
|---|---|
| path | video file, relative to the folder of videos; needed |
| label | class name or number; needed |
| split | train, val or test; needed unless each split has its file |
| id | name of the clip; else the path without its ending, and the range of frames or seconds |
| start_frame, end_frame | whole numbers from 0; is the last one part? `dataset.end_frame` |
| start_seconds, end_seconds | the same as times, half-open; not together with frames |
| group | what clips of one origin share: source video, performer |

A column whose name starts with an underscore is left alone; any other is an error.
"""

from __future__ import annotations

import csv
import difflib
import math
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    VAL,
    AnnotatedClip,
    Annotations,
    Sources,
    check_frames,
    check_inside_root,
)
from dsts_pipeline.clips.rows import Row, build_annotations, read_class_names

TABLE_FILE = "annotations.csv"
CLASS_FILE = "classes.txt"
COLUMNS = (
    "path label split id start_frame end_frame start_seconds end_seconds group".split()
)  # in the order of the table above
SPLIT_NAMES = {TRAIN: TRAIN, VAL: VAL, "validation": VAL, "valid": VAL, TEST: TEST}


def read_csv(root: Path, sources: Sources) -> Annotations:
    """Read the tables in `root`.

    Raises:
        DataError: A table or a column is missing or unknown, or a row is wrong; the message names
            its line.
    """
    folder = sources.video_folder or "."
    if sources.train_file and not sources.test_file:
        files: dict[str, str | None] = {sources.train_file: None}
    elif sources.test_file or not (root / TABLE_FILE).is_file():
        files = {sources.train_file or "train.csv": TRAIN, sources.test_file or "test.csv": TEST}
    else:
        files = {TABLE_FILE: None}
    rows: list[Row] = []
    for name, split in files.items():
        found = list(_read_table(root / name, split, folder))
        if not found:
            raise DataError(f"{root / name}: it has no row; expected one clip a line")
        rows += found
    names = read_class_names(root, sources, CLASS_FILE)
    return build_annotations(rows, class_names=names, video_folders=(folder,))


def _read_table(path: Path, split: str | None, folder: str) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
            _check_columns(columns, split, path)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                place = f"{path}: line {reader.line_num + 1}"
                if len(cells) != len(columns):
                    if not cells:
                        continue  # an empty line
                    raise DataError(f"{place}: {len(cells)} cells; expected {len(columns)}")
                values = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
                yield _read_row(values, split, folder, place)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected {TABLE_FILE} with a column split, or train.csv and "
            "test.csv"
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a UTF-8 CSV file ({error}); save it as one") from None


def _check_columns(columns: list[str], split: str | None, path: Path) -> None:
    for name in columns:
        if name not in COLUMNS and not name.startswith("_"):
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise DataError(
                f"{path}: column {name!r} is unknown; {hint}Known: {', '.join(COLUMNS)}; one to be "
                "left alone starts with an underscore"
            )
        if columns.count(name) > 1:
            raise DataError(f"{path}: column {name!r} stands twice; remove one")
    for name in ("path", "label") if split else ("path", "label", "split"):
        if name not in columns:
            raise DataError(f"{path}: no column {name!r}; found {', '.join(columns) or 'nothing'}")


def _read_row(values: Mapping[str, str], split: str | None, folder: str, place: str) -> Row:
    written = values.get("split", "").lower()
    if split is None and written not in SPLIT_NAMES:
        raise DataError(f"{place}: split is {written!r}; expected train, val or test")
    name = values["path"]
    start_frame, end_frame = (_frame(values, f"{end}_frame", place) for end in ("start", "end"))
    start, end = (_seconds(values, f"{end}_seconds", place) for end in ("start", "end"))
    if (start_frame, end_frame) != (None, None) and (start, end) != (None, None):
        raise DataError(f"{place}: a range in frames and in seconds; leave one of them empty")
    check_frames(start_frame, end_frame, place)
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{place}: end_seconds {end:g} is not after start_seconds {start or 0:g}")
    clip_range = [values.get(column) or "" for column in COLUMNS[4:8]]
    ending = "@" + "-".join(filter(None, clip_range)) if any(clip_range) else ""
    clip = AnnotatedClip(
        values.get("id") or posixpath.splitext(name)[0] + ending,
        check_inside_root(f"{folder}/{name}" if name and folder != "." else name, place),
        0,
        split or SPLIT_NAMES[written],
        start_frame,
        end_frame,
        start,
        end,
        values.get("group") or None,
    )
    return Row(clip, values["label"], place)


def _frame(values: Mapping[str, str], column: str, place: str) -> int | None:
    text = values.get(column, "")
    if text and not (text.isascii() and text.isdecimal()):
        raise DataError(f"{place}: {column} is {text!r}; expected a whole number >= 0")
    return int(text) if text else None


def _seconds(values: Mapping[str, str], column: str, place: str) -> float | None:
    text = values.get(column, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise DataError(f"{place}: {column} is {text!r}; expected seconds, at least 0")
    return seconds
