"""Videos sorted into one folder per class.

Enters: `train/CLASS/*.mp4` and `test/CLASS/*.mp4` (also `val/` or `validation/`), or `CLASS/*.mp4`
alone, which is all training. Folders below a class folder are groups, such as performers. Leaves:
`Annotations`; classes count in sorted order, or in that of `classes.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    VAL,
    AnnotatedClip,
    Annotations,
    Sources,
    check_inside_root,
    is_video,
)
from dsts_pipeline.clips.rows import Row, build_annotations, read_class_names

CLASS_FILE = "classes.txt"
SPLIT_FOLDERS = {TRAIN: TRAIN, VAL: VAL, "validation": VAL, TEST: TEST}


def read_folders(root: Path, sources: Sources) -> Annotations:
    """List the videos below `root`.

    Raises:
        DataError: There is none, a split or a class has none, a folder is a link, two videos
            differ in their ending alone.
    """
    top = root / (sources.video_folder or ".")
    splits = {name: split for name, split in SPLIT_FOLDERS.items() if (top / name).is_dir()}
    if splits and TRAIN not in splits:
        raise DataError(f"{top}: found {', '.join(splits)} but no train folder beside it")
    folders = [(top / name, split) for name, split in splits.items()] or [(top, TRAIN)]
    rows: list[Row] = []
    for folder, split in folders:
        rows += _read_split(root, top, folder, split)
    names = read_class_names(root, sources, CLASS_FILE)
    used = tuple(path.relative_to(root).as_posix() for path, _ in folders)
    return build_annotations(rows, class_names=names, video_folders=used)


def _read_split(root: Path, top: Path, folder: Path, split: str) -> list[Row]:
    rows: list[Row] = []
    for entry in _scan(root, folder):
        if not entry.is_dir():
            if is_video(entry.name):
                raise DataError(
                    f"{entry.path}: a video outside of a class folder; expected "
                    f"{folder.name}/CLASS/{entry.name}"
                )
            continue
        found = [_as_row(root, top, Path(entry.path), path, split) for path in _videos(root, entry)]
        if not found:
            raise DataError(
                f"{entry.path}: no video in the folder of class {entry.name!r}; expected files "
                "such as clip.mp4, or remove it"
            )
        rows += found
    if not rows:
        raise DataError(f"{folder}: no video found; expected one folder per class")
    return rows


def _videos(root: Path, folder: os.DirEntry[str]) -> Iterator[str]:
    for entry in _scan(root, Path(folder.path)):
        if entry.is_dir():
            yield from _videos(root, entry)
        elif is_video(entry.name):
            yield entry.path


def _scan(root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        found = sorted((e for e in entries if e.name[0] != "."), key=lambda entry: entry.name)
    for entry in found:
        if entry.is_symlink():
            if not Path(entry.path).resolve().is_relative_to(root.resolve()):
                raise DataError(
                    f"{entry.path}: a link that leads out of the data root; put the file itself "
                    "there, or set dataset.root to where it is"
                )
            if entry.is_dir():
                raise DataError(f"{entry.path}: a link to a folder, read twice; remove it")
    return found


def _as_row(root: Path, top: Path, class_folder: Path, path: str, split: str) -> Row:
    group = Path(path).parent.relative_to(class_folder).as_posix()
    inside = check_inside_root(Path(path).relative_to(root).as_posix(), path)
    clip_id = PurePosixPath(Path(path).relative_to(top).as_posix()).with_suffix("")
    clip = AnnotatedClip(str(clip_id), inside, 0, split, group=None if group == "." else group)
    return Row(clip, class_folder.name, path)
