"""A table of one's own clips.

Enters: CSV files (comma, semicolon or tab; first line names the columns), either one
`annotations.csv` with a column `split`, or `train.csv`, perhaps `val.csv`, and `test.csv`. A file
without names of columns, "path label" a line, is read as a list (`mmaction_list`), as VideoMAE,
V-JEPA and SlowFast write it. Leaves: `Annotations`.

| column | what it holds |
|---|---|
| path | video file, relative to the folder of videos; needed |
| label | class name, or class number from 0; needed |
| split | train, val or test; else each split has its file, or `dataset.test_fraction` is set |
| id | name of the clip; else the path without its ending, and the range of frames or seconds |
| start_frame, end_frame | whole numbers from 0; is the last one part? `dataset.end_frame` |
| start_seconds, end_seconds | the same as times, half-open; not together with frames |
| group | what clips of one origin share: source video, performer |

A column whose name starts with an underscore is left alone; any other is an error.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    VAL,
    AnnotatedClip,
    Annotations,
    Sources,
    VideoPaths,
    check_frames,
    check_text,
    is_video,
)
from dsts_pipeline.clips.labels import parse_whole_number
from dsts_pipeline.clips.mmaction_list import is_list, read_list
from dsts_pipeline.clips.rows import Row, build_annotations, read_class_names
from dsts_pipeline.clips.tables import read_split_cell, read_table

TABLE_FILE = "annotations.csv"
CLASS_FILE = "classes.txt"
COLUMNS = (
    "path label split id start_frame end_frame start_seconds end_seconds group".split()
)  # in the order of the table above
_VAL_FILES = ("val.csv", "valid.csv", "validation.csv")
_EXPECTED = f"{TABLE_FILE} with a column split, or train.csv and test.csv"


def read_csv(root: Path, sources: Sources) -> Annotations:
    """Read the tables in `root`.

    Raises:
        DataError: A table or a column is missing or unknown, or a row is wrong; the message names
            its line.
    """
    videos = VideoPaths(
        root, sources.video_folder or ".", allow_outside_root=sources.allow_outside_root
    )
    rows: list[Row] = []
    notes: list[str] = []
    files = _find_tables(root, sources)
    others = [name for name in ("train.csv", *_VAL_FILES, "test.csv") if (root / name).is_file()]
    if list(files) == [TABLE_FILE] and others:
        notes.append(f"{TABLE_FILE} was read; left alone: {', '.join(others)} beside it")
    for name, split in files.items():
        path = root / name
        if is_list(_first_line(path)):
            notes.append(f"{path}: read as a list ('path label' a line, no names of columns)")
            found = read_list(path, split or TRAIN, videos)
        else:
            check = functools.partial(_check_columns, path=path)
            table = read_table(path, check, missing=_EXPECTED)
            found = [_read_row(values, split, videos, place) for place, values in table]
        if not found:
            raise DataError(f"{path}: it has no row; expected one clip a line")
        rows += found
    return build_annotations(
        rows,
        class_names=read_class_names(root, sources, CLASS_FILE),
        video_folders=(videos.folder,),
        unsplit=f"{root / next(iter(files))}: no column 'split' in which a clip is of test, and no "
        "test.csv",
        notes=notes,
    )


def _find_tables(root: Path, sources: Sources) -> dict[str, str | None]:
    """The tables, and the split of each; None where a column tells it."""
    if sources.train_file and not sources.test_file:
        return {sources.train_file: None}
    if sources.test_file:
        return {sources.train_file or "train.csv": TRAIN, sources.test_file: TEST}
    if (root / TABLE_FILE).is_file():
        return {TABLE_FILE: None}
    files: dict[str, str | None] = {"train.csv": TRAIN}
    files |= {name: VAL for name in _VAL_FILES if (root / name).is_file()}
    if (root / "test.csv").is_file() or len(files) == 1 and not (root / "train.csv").is_file():
        files["test.csv"] = TEST
    return files


def _first_line(path: Path) -> str:
    """The first line that isn't empty; "" where the file can't be read, which is told later."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return ""


def _check_columns(columns: list[str], *, path: Path) -> None:
    if any(is_video(name) for name in columns):
        raise DataError(
            f"{path}: the first line is a clip ({', '.join(columns)}), not the names of the "
            f"columns; write them above it, such as {','.join(COLUMNS[: len(columns)])}"
        )
    for name in columns:
        if name not in COLUMNS and not name.startswith("_"):
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise DataError(
                f"{path}: column {name!r} is unknown; {hint}Known: {', '.join(COLUMNS)}; one to be "
                "left alone starts with an underscore"
            )
    for name in ("path", "label"):
        if name not in columns:
            raise DataError(f"{path}: no column {name!r}; found {', '.join(columns) or 'nothing'}")


def _read_row(values: Mapping[str, str], split: str | None, videos: VideoPaths, place: str) -> Row:
    split = _split_of(values, split, place)
    start_frame, end_frame = (_frame(values, f"{end}_frame", place) for end in ("start", "end"))
    start, end = (_seconds(values, f"{end}_seconds", place) for end in ("start", "end"))
    if (start_frame, end_frame) != (None, None) and (start, end) != (None, None):
        raise DataError(f"{place}: a range in frames and in seconds; leave one of them empty")
    check_frames(start_frame, end_frame, place)
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{place}: end_seconds {end:g} is not after start_seconds {start or 0:g}")
    clip_range = [values.get(column) or "" for column in COLUMNS[4:8]]
    ending = "@" + "-".join(filter(None, clip_range)) if any(clip_range) else ""
    path, clip_id = videos.find(values["path"], place)
    for column in ("id", "group"):
        check_text(values.get(column, ""), column, place)
    clip = AnnotatedClip(
        values.get("id") or clip_id + ending,
        path,
        0,
        split,
        start_frame,
        end_frame,
        start,
        end,
        values.get("group") or None,
    )
    return Row(clip, values["label"], place)


def _split_of(values: Mapping[str, str], of_file: str | None, place: str) -> str:
    """The row's split; a column may say again what the file says, and nothing else."""
    if "split" not in values:
        return of_file or TRAIN
    named = read_split_cell(values["split"], place)
    if of_file not in (None, named) and (of_file, named) != (TEST, VAL):
        raise DataError(
            f"{place}: split is {values['split']!r} in the file of the {of_file} split; correct "
            "the row, or remove the column"
        )
    return of_file or named


def _frame(values: Mapping[str, str], column: str, place: str) -> int | None:
    text = values.get(column, "")
    number = parse_whole_number(text)  # "30.0", too: pandas writes so beside an empty cell
    if text and number is None:
        raise DataError(f"{place}: {column} is {text!r}; expected a whole number >= 0")
    return number


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
