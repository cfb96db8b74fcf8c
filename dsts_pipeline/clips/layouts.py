"""A folder of somebody's videos -> how it is laid out, and the settings by which it is read.

Enters: a folder. Leaves: a `Layout`: the format, the keys of the section `dataset` that read it,
what its annotations say, and every choice that a person should look at. No video is opened.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import TEST, TRAIN, VAL, Annotations, is_video
from dsts_pipeline.clips.diving48 import VOCABULARY_FILE
from dsts_pipeline.clips.readers import read_annotations
from dsts_pipeline.clips.tables import TABLE_FILE, find_split

# Names, below the folder, of which one tells the format.
_SIGNS: dict[str, tuple[str, ...]] = {
    "diving48": (VOCABULARY_FILE, f"annotations/{VOCABULARY_FILE}"),
    "ssv2": tuple(
        f"{folder}{name}"
        for folder in ("", "labels/", "annotations/")
        for name in ("labels.json", "something-something-v2-labels.json")
    ),
    "csv": (TABLE_FILE, "train.csv", "test.csv"),
    "mmaction": ("train_list_videos.txt", "train_list.txt"),
}
TEST_FRACTION = 0.2
SMALL_TEST_FRACTION = 0.34  # of classes of fewer than `_SMALL_CLASS` clips
_SMALL_CLASS = 10


@dataclass(frozen=True)
class Layout:
    """How a folder of videos is read.

    Attributes:
        format: A word of `dataset.format`.
        root: The folder that `dataset.root` names; below the given one where that holds nothing
            else.
        settings: Keys of the section `dataset` that differ from the format's defaults.
        annotations: What is annotated.
        unsure: What a person should look at, in sentences.
    """

    format: str
    root: Path
    settings: dict[str, Any]
    annotations: Annotations
    unsure: tuple[str, ...]

    def count_clips(self) -> dict[str, Counter[str]]:
        """Clips by split, then by class name."""
        counts: dict[str, Counter[str]] = {}
        for clip in self.annotations.clips:
            name = self.annotations.class_names[clip.label]
            counts.setdefault(clip.split, Counter())[name] += 1
        return counts


def find_layout(folder: Path) -> Layout:
    """Find out how `folder` is laid out.

    Raises:
        DataError: There is no such folder, it holds no videos that any format describes, or its
            annotations are wrong; the message says what was found and how to lay it out.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one that your videos are in")
    unsure: list[str] = []
    root = _descend(folder.resolve())
    if root != folder.resolve():
        unsure.append(f"{folder} holds nothing but {root}, which is taken as the data set")
    kind, settings, why = _find_format(root)
    unsure += why
    annotations, fraction = _read(kind, root, settings)
    if fraction:
        settings["test_fraction"] = fraction
        unsure.append(
            f"no test split: {fraction:.0%} of the clips become one, by class, whole groups where "
            "clips have some (dataset.test_fraction)"
        )
    unsure += _find_doubts(kind, annotations)
    return Layout(kind, root, settings, annotations, tuple(unsure))


def _descend(root: Path) -> Path:
    """The folder below `root` that holds anything, where each above it holds one folder alone."""
    while True:
        entries = [entry for entry in root.iterdir() if entry.name[0] != "."]
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink():
            return root
        inside = [entry for entry in entries[0].iterdir() if entry.name[0] != "."]
        if not any(entry.is_dir() for entry in inside):
            return root  # the one folder is a class
        root = entries[0]


def _find_format(root: Path) -> tuple[str, dict[str, Any], list[str]]:
    """The format, keys of the section that name its files, and what speaks for another."""
    signs = {
        kind: [name for name in names if (root / name).is_file()] for kind, names in _SIGNS.items()
    }
    found = [kind for kind, names in signs.items() if names]
    if found:
        kind = found[0]
        others = [signs[other][0] for other in found[1:]]
        unsure = [f"{signs[kind][0]} was read, not {name}" for name in others]
        return kind, {}, unsure
    tables = sorted(path.name for path in root.glob("*.csv"))
    if len(tables) == 1:
        return "csv", {"train_file": tables[0]}, [f"{tables[0]} was taken for the table of clips"]
    if len(tables) > 1:
        raise DataError(
            f"{root}: found {', '.join(tables[:5])}; which is the table of clips? Call it "
            f"{TABLE_FILE}, with columns path, label and, if you like, split"
        )
    videos = [path.name for path in root.iterdir() if path.is_file() and is_video(path.name)]
    if videos:
        raise DataError(
            f"{root}: found {len(videos):,} videos, such as {min(videos)}, and nothing that tells "
            f"their classes; put them into one folder per class, or write {TABLE_FILE} with "
            "columns path and label"
        )
    return "folder", {}, []


def _read(kind: str, root: Path, settings: dict[str, Any]) -> tuple[Annotations, float]:
    """What is annotated, and the share that a test split has to be drawn from, or 0."""
    try:
        return read_annotations(kind, root, **settings), 0.0
    except DataError as as_it_is:
        try:
            annotations = read_annotations(kind, root, test_fraction=TEST_FRACTION, **settings)
        except DataError:
            raise as_it_is from None
    sizes = Counter(clip.label for clip in annotations.clips)
    if max(sizes.values()) == 1:
        raise DataError(
            f"{root}: every class has one clip, so that none can be learnt and tested; add clips"
        )
    fewest = min(sizes.values())
    return annotations, SMALL_TEST_FRACTION if fewest < _SMALL_CLASS else TEST_FRACTION


def _find_doubts(kind: str, annotations: Annotations) -> list[str]:
    """What may be otherwise than it was read."""
    doubts = list(annotations.notes)
    clips = annotations.clips
    names = annotations.class_names
    groups = {clip.group for clip in clips if clip.group}
    if kind == "folder" and groups:
        told = f"folders below the classes are groups, such as performers: {len(groups):,}"
        if words := sorted({word for group in groups for word in group.split("/")}):
            splits = [word for word in words if find_split(word)]
            if splits:
                told += (
                    f"; but {', '.join(splits[:3])} sounds like a split, which stands above the "
                    f"classes: {splits[0]}/CLASS/*.mp4"
                )
        doubts.append(told)
    if len(names) == 1:
        doubts.append(f"only one class was found, {names[0]!r}: there is nothing to tell apart")
    per_class = Counter(clip.label for clip in clips if clip.split in (TRAIN, VAL, TEST))
    single = [names[label] for label, count in sorted(per_class.items()) if count == 1]
    if single:
        doubts.append(f"{len(single):,} classes have one clip only, such as {single[0]!r}")
    untrained = set(per_class) - {clip.label for clip in clips if clip.split == TRAIN}
    if untrained:
        name = names[min(untrained)]
        doubts.append(f"{len(untrained):,} classes have no clip in train, such as {name!r}")
    if annotations.unusable:
        first = annotations.unusable[0]
        doubts.append(
            f"{len(annotations.unusable):,} files can't be used, such as "
            f"{posixpath.basename(first.path)}: {first.reason}"
        )
    if kind not in ("diving48", "ssv2"):
        doubts.append(
            "whether a mirrored clip shows the same class is not known: augmentation does not "
            "mirror (dataset.flip=allowed if it does)"
        )
    return doubts
