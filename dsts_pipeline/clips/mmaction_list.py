"""Lists of videos: "path label" a line, without a first line of names.

Enters: text files as mmaction2's `VideoDataset` takes them, and as VideoMAE, V-JEPA and SlowFast
write them into files called .csv: the path relative to the folder of videos (mmaction2's
`data_prefix`) or absolute, a space, tab, comma or semicolon, a class number. Leaves: `Annotations`.

Lists for folders of frames ("frame_dir total_frames label", as of mmaction2's `RawframeDataset`,
TSM, UniFormer) are refused: a folder of frames is no video.
"""

from __future__ import annotations

import re
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
    find_folder,
    is_video,
)
from dsts_pipeline.clips.labels import is_numeral
from dsts_pipeline.clips.rows import Row, build_annotations, read_class_names, read_lines

CLASS_FILE = "label_map.txt"
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
    folder = sources.video_folder or find_folder(root, ("videos", "."))
    videos = VideoPaths(root, folder, allow_outside_root=sources.allow_outside_root)
    files = {TRAIN: _find_list(root, TRAIN, sources.train_file)}
    if sources.test_file:
        files[TEST] = root / sources.test_file
    else:
        files |= {split: _find_list(root, split) for split in (VAL, TEST)}
    if files[TRAIN] is None:
        raise DataError(f"{root}: no train list; expected train{_ENDINGS[0]} or dataset.train_file")
    rows: list[Row] = []
    for split, path in files.items():
        rows += read_list(path, split, videos) if path else []
    return build_annotations(
        rows,
        class_names=read_class_names(root, sources, CLASS_FILE),
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


def is_list(line: str) -> bool:
    """Whether a file whose first line this is seems to be a list, not a table with columns."""
    found = _LINE.fullmatch(line.strip())
    if found is None or not is_numeral(found[2]):
        return False
    return is_video(_unquote(found[1])) or _FRAMES_AND_LABEL.fullmatch(line.strip()) is not None


def read_list(path: Path, split: str, videos: VideoPaths) -> list[Row]:
    """The clips of one list.

    Raises:
        DataError: The list is missing or empty, or a line is wrong; the message names it.
    """
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
