"""Videos sorted into one folder per class.

Enters: `train/CLASS/*.mp4` and `test/CLASS/*.mp4`, perhaps `val/CLASS/*.mp4` (by any of the words
of `tables.SPLIT_WORDS`, in any case), or `CLASS/*.mp4` alone, which `dataset.test_fraction` splits.
Folders below a class folder are groups, such as performers. Leaves: `Annotations`; classes count in
sorted order, or in that of `classes.txt`.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import (
    TRAIN,
    VIDEO_SUFFIXES,
    AnnotatedClip,
    Annotations,
    Sources,
    UnusableClip,
    VideoPaths,
    check_text,
    is_text,
    is_utf8,
    is_video,
    printable,
)
from dsts_pipeline.clips.labels import Row, build_annotations, read_class_names
from dsts_pipeline.clips.tables import find_split


def read_folders(root: Path, sources: Sources) -> Annotations:
    """List the videos below `root`.

    A file whose name, or whose folder's name, is no UTF-8 text is listed as unusable.

    Raises:
        DataError: There is none, a split or a class has none, two folders mean one split, a folder
            is a link, two videos differ in their ending alone.
    """
    videos = VideoPaths(root, sources)
    top = root / videos.folder
    if not top.is_dir():
        raise DataError(f"{top}: no such folder; correct dataset.video_folder")
    walk = _Walk(root, top, sources.allow_outside_root)
    splits: dict[str, str] = {}
    for entry in walk.scan(top):
        split = find_split(entry.name)
        if split is None or not entry.is_dir():
            continue
        if split in splits:
            raise DataError(
                f"{top}: folders {splits[split]} and {entry.name} both mean the split {split}; "
                "put their clips into one of them"
            )
        splits[split] = entry.name
    if splits and TRAIN not in splits:
        found = ", ".join(splits.values())
        raise DataError(
            f"{top}: found {found}, which is called like a split, but no train folder beside it; "
            "add one, or rename it where it is a class"
        )
    for split, name in splits.items():
        walk.read_split(top / name, split)
    if not splits:
        walk.read_split(top, TRAIN)
    return build_annotations(
        walk.rows,
        class_names=read_class_names(root, sources),
        video_folders=(videos.folder,),
        unsplit=f"{top}: no folder called test with one folder per class in it",
        unusable=walk.unusable,
        notes=walk.notes(),
    )


@dataclass
class _Walk:
    """What is found on the way through the folders."""

    root: Path
    top: Path
    allow_outside_root: bool
    rows: list[Row] = field(default_factory=list)
    unusable: list[UnusableClip] = field(default_factory=list)
    other_endings: Counter[str] = field(default_factory=Counter)

    def read_split(self, folder: Path, split: str) -> None:
        """Add the clips of one split."""
        num_found = 0
        for entry in self.scan(folder):
            if not entry.is_dir():
                if is_video(entry.name):
                    raise DataError(
                        f"{printable(entry.path)}: a video outside of a class folder; expected "
                        f"{printable(f'{folder.name}/CLASS/{entry.name}')}"
                    )
                continue
            if is_utf8(entry.name):  # else its clips are listed as unusable
                check_text(entry.name, "class name", printable(entry.path))
            paths = list(self._videos(entry))
            if not paths:
                raise DataError(
                    f"{printable(entry.path)}: no video in the folder of class "
                    f"{printable(entry.name)!r}; expected files that end with one of "
                    f"{' '.join(sorted(VIDEO_SUFFIXES))}, or remove it"
                )
            for path in paths:
                self._add(Path(entry.path), path, split)
            num_found += len(paths)
        if not num_found:
            raise DataError(f"{folder}: no video found; expected one folder per class")

    def notes(self) -> list[str]:
        """What was passed over."""
        if not self.other_endings:
            return []
        shown = ", ".join(f"{n} {ending}" for ending, n in self.other_endings.most_common(5))
        return [
            f"{self.other_endings.total():,} files in the folders of classes were passed over, "
            f"since their endings are no video's: {shown}"
        ]

    def _videos(self, folder: os.DirEntry[str]) -> Iterator[str]:
        for entry in self.scan(Path(folder.path)):
            if entry.is_dir():
                yield from self._videos(entry)
            elif is_video(entry.name):
                yield entry.path
            else:
                ending = posixpath.splitext(entry.name)[1].lower()
                self.other_endings[printable(ending) or "without ending"] += 1

    def scan(self, folder: Path) -> list[os.DirEntry[str]]:
        """Entries of a folder, sorted; hidden ones are left out."""
        with os.scandir(folder) as entries:
            found = sorted((e for e in entries if e.name[0] != "."), key=lambda entry: entry.name)
        for entry in found:
            if entry.is_symlink():
                self._check_link(entry)
        return found

    def _check_link(self, entry: os.DirEntry[str]) -> None:
        shown = printable(entry.path)
        target = Path(entry.path).resolve()
        if not target.exists():
            raise DataError(f"{shown}: a link to nothing ({target}); remove or correct it")
        is_outside = not target.is_relative_to(self.root.resolve())
        if is_outside and not self.allow_outside_root:
            raise DataError(
                f"{shown}: a link that leads out of the data root; put the file itself there, set "
                "dataset.root to where it is, or dataset.allow_outside_root to true"
            )
        comes_back = Path(entry.path).parent.resolve().is_relative_to(target)
        if entry.is_dir() and (comes_back or not is_outside):
            raise DataError(f"{shown}: a link to a folder, read twice; remove it")

    def _add(self, class_folder: Path, path: str, split: str) -> None:
        inside = Path(path).relative_to(self.root).as_posix()
        clip_id = posixpath.splitext(Path(path).relative_to(self.top).as_posix())[0]
        if not is_text(inside):
            reason = "its name is no UTF-8 text, or holds a control character; rename it"
            self.unusable.append(UnusableClip(printable(clip_id), printable(inside), split, reason))
            return
        group = Path(path).parent.relative_to(class_folder).as_posix()
        clip = AnnotatedClip(clip_id, inside, 0, split, group=None if group == "." else group)
        self.rows.append(Row(clip, class_folder.name, path))
