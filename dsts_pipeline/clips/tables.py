"""Tables and lists of one's own clips.

`read_csv` reads CSV files (comma, semicolon or tab; first line names the columns), either one
`annotations.csv` with a column `split`, or `train.csv`, perhaps `val.csv`, and `test.csv`:

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

A list has no names of columns, but "path label" a line: the path relative to the folder of videos
(mmaction2's `data_prefix`) or absolute, a space, tab, comma or semicolon, a class number. Such are
mmaction2's lists for `VideoDataset`, which `read_mmaction` reads, and those that VideoMAE, V-JEPA
and SlowFast write into files called .csv, which `read_csv` takes, too. Lists for folders of frames
("frame_dir total_frames label", as of mmaction2's `RawframeDataset`, TSM, UniFormer) are refused: a
folder of frames is no video.
"""

from __future__ import annotations

import csv
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
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
from dsts_pipeline.clips.labels import (
    Row,
    build_annotations,
    is_numeral,
    parse_whole_number,
    read_class_names,
    read_lines,
)

TABLE_FILE = "annotations.csv"
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
    videos = VideoPaths(root, sources)
    rows: list[Row] = []
    notes: list[str] = []
    files = _find_tables(root, sources)
    others = [name for name in ("train.csv", *_VAL_FILES, "test.csv") if (root / name).is_file()]
    if list(files) == [TABLE_FILE] and others:
        notes.append(f"{TABLE_FILE} was read; left alone: {', '.join(others)} beside it")
    for name, split in files.items():
        path = root / name
        if _is_list(_first_line(path)):
            notes.append(f"{path}: read as a list ('path label' a line, no names of columns)")
            found = _read_list(path, split or TRAIN, videos)
        else:
            check = functools.partial(_check_columns, path=path)
            table = read_table(path, check, missing=_EXPECTED)
            found = [_read_row(values, split, videos, place) for place, values in table]
        if not found:
            raise DataError(f"{path}: it has no row; expected one clip a line")
        rows += found
    return build_annotations(
        rows,
        class_names=read_class_names(root, sources),
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


# ---- any table: one reader for clips and for the labels of imported features ---------------------

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

    The file is UTF-8, with or without byte-order mark; cells are parted by comma, semicolon or tab,
    whichever the first line has most of; that line names the columns.

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


# ---- lists: "path label" a line ------------------------------------------------------------------

_ENDINGS = ("_list_videos.txt", "_list.txt", ".txt")
_LINE = re.compile(r"(.*?)[\s,;]+([^\s,;]+)")
_FRAMES_AND_LABEL = re.compile(r"[^\s,;]+[\s,;]+\d+[\s,;]+\d+", re.ASCII)


def read_mmaction(root: Path, sources: Sources) -> Annotations:
    """Read the lists in `root`.

    Where the settings name none, the lists are `train_list_videos.txt`, `train_list.txt` or
    `train.txt`, possibly with something before it, such as `diving48_`; likewise `val` and `test`.
    Class names are in `label_map.txt`, one a line, or else the numbers.

    Raises:
        DataError: A list is missing, or a line is wrong; the message names it.
    """
    videos = VideoPaths(root, sources, ("videos", "."))
    files = {TRAIN: _find_list(root, TRAIN, sources.train_file)}
    if sources.test_file:
        files[TEST] = root / sources.test_file
    else:
        files |= {split: _find_list(root, split) for split in (VAL, TEST)}
    if files[TRAIN] is None:
        raise DataError(f"{root}: no train list; expected train{_ENDINGS[0]} or dataset.train_file")
    rows: list[Row] = []
    for split, path in files.items():
        rows += _read_list(path, split, videos) if path else []
    return build_annotations(
        rows,
        class_names=read_class_names(root, sources, "label_map.txt"),
        video_folders=(videos.folder,),
        unsplit=f"{root}: no test list; expected test{_ENDINGS[0]} or dataset.test_file",
    )


def _find_list(root: Path, split: str, chosen: str | None = None) -> Path | None:
    if chosen:
        return root / chosen
    for ending in _ENDINGS:
        found = sorted({*root.glob(f"{split}{ending}"), *root.glob(f"*_{split}{ending}")})
        if len(found) > 1:
            names = " and ".join(path.name for path in found[:2])
            raise DataError(f"{root}: {names} may both be the {split} list; set dataset.train_file "
                            "and dataset.test_file")  # fmt: skip
        if found:
            return found[0]
    return None


def _is_list(line: str) -> bool:
    """Whether a file whose first line this is seems to be a list, not a table with columns."""
    found = _LINE.fullmatch(line.strip())
    if found is None or not is_numeral(found[2]):
        return False
    return is_video(_unquote(found[1])) or _FRAMES_AND_LABEL.fullmatch(line.strip()) is not None


def _read_list(path: Path, split: str, videos: VideoPaths) -> list[Row]:
    """The clips of one list."""
    rows = [
        _read_line(line, split, videos, f"{path}: line {number}")
        for number, line in enumerate(read_lines(path), 1)
    ]
    if not rows:
        raise DataError(f"{path}: the {split} split is empty; expected 'path label' a line")
    return rows


def _read_line(line: str, split: str, videos: VideoPaths, place: str) -> Row:
    found = _LINE.fullmatch(line)
    name, label = (_unquote(found[1]), found[2]) if found else (line, "")
    if not name or not is_numeral(label):
        raise DataError(f"{place} is {line!r}; expected 'path label', the label a class number")
    before = _LINE.fullmatch(name)
    if before and is_numeral(before[2]) and not is_video(name):
        if is_video(_unquote(before[1])):
            raise DataError(f"{place} is {line!r}: several labels; expected one class a clip")
        raise DataError(
            f"{place} is {line!r}, as in lists of raw frames ('frame_dir total_frames label'); "
            "folders of frames are not read: give the list of videos ('path label')"
        )
    video, clip_id = videos.find(name, place)
    return Row(AnnotatedClip(clip_id, video, 0, split), label, place)


def _unquote(name: str) -> str:
    """A name without the quotes that pandas puts around one with spaces."""
    return name[1:-1].replace('""', '"') if len(name) > 1 and name[0] == name[-1] == '"' else name
