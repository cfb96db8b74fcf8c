"""mmaction2's annotation lists of videos.

Enters: text files with "path label" a line, the path relative to the folder of videos (mmaction2's
`data_prefix`), the label a class number. Leaves: `Annotations`.

Source: mmaction2's `VideoDataset`. Lists for its `RawframeDataset` ("frame_dir total_frames
label") are refused: a folder of frames is no video.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    VAL,
    AnnotatedClip,
    Annotations,
    Sources,
    check_inside_root,
    find_folder,
    is_video,
)
from dsts_pipeline.clips.rows import Row, build_annotations, read_class_names, read_lines

CLASS_FILE = "label_map.txt"
_ENDINGS = ("_list_videos.txt", "_list.txt", ".txt")


def read_mmaction(root: Path, sources: Sources) -> Annotations:
    """Read the lists in `root`.

    Where the settings name none, the lists are `train_list_videos.txt`, `train_list.txt` or
    `train.txt`, possibly with something before it, such as `diving48_`; likewise `val` and `test`.
    Class names are in `label_map.txt`, one a line, or else the numbers.

    Raises:
        DataError: A list is missing, or a line is wrong; the message names it.
    """
    folder = sources.video_folder or find_folder(root, ("videos", "."))
    files = {TRAIN: _find_list(root, TRAIN, sources.train_file)}
    if sources.test_file:
        files[TEST] = root / sources.test_file
    else:
        files |= {split: _find_list(root, split) for split in (VAL, TEST)}
    for split, found in ((TRAIN, files[TRAIN]), (TEST, files[TEST] or files.get(VAL))):
        if found is None:
            raise DataError(
                f"{root}: no {split} list; expected {split}{_ENDINGS[0]} or dataset.{split}_file"
            )
    rows: list[Row] = []
    for split, path in files.items():
        rows += _read_list(path, split, folder) if path else []
    names = read_class_names(root, sources, CLASS_FILE)
    return build_annotations(rows, class_names=names, video_folders=(folder,))


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


def _read_list(path: Path, split: str, folder: str) -> list[Row]:
    rows = [
        _read_line(line, split, folder, f"{path}: line {number}")
        for number, line in enumerate(read_lines(path), 1)
    ]
    if not rows:
        raise DataError(f"{path}: the {split} split is empty; expected 'path label' a line")
    return rows


def _read_line(line: str, split: str, folder: str, place: str) -> Row:
    name, _, label = line.rpartition(" ")
    name = name.strip()
    *start, last = name.split(" ") or [""]
    if not name or not (label.isascii() and label.isdecimal()):
        raise DataError(f"{place} is {line!r}; expected 'path label', the label a class number")
    if start and last.isdecimal() and not is_video(name):
        if is_video(" ".join(start)):
            raise DataError(f"{place} is {line!r}: several labels; expected one class a clip")
        raise DataError(
            f"{place} is {line!r}, as in lists of raw frames ('frame_dir total_frames label'); "
            "folders of frames are not read: give the list of videos ('path label')"
        )
    video = check_inside_root(name if folder in ("", ".") else f"{folder}/{name}", place)
    clip_id, _ = posixpath.splitext(name)
    return Row(AnnotatedClip(clip_id, video, 0, split), label, place)
