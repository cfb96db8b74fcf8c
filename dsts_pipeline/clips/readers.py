"""Annotation files in, a list of annotated clips out; no video is opened here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import AnnotatedClip, Annotations, Sources
from dsts_pipeline.clips.class_folders import read_folders
from dsts_pipeline.clips.csv_table import read_csv
from dsts_pipeline.clips.diving48 import read_diving48
from dsts_pipeline.clips.mmaction_list import read_mmaction
from dsts_pipeline.clips.ssv2 import read_ssv2

__all__ = ["AnnotatedClip", "Annotations", "read_annotations"]

_READERS: dict[str, Callable[[Path, Sources], Annotations]] = {
    "diving48": read_diving48,
    "ssv2": read_ssv2,
    "folder": read_folders,
    "csv": read_csv,
    "mmaction": read_mmaction,
}


def read_annotations(
    kind: str,
    root: str | Path,
    *,
    video_folder: str | None = None,
    train_file: str | None = None,
    test_file: str | None = None,
    class_file: str | None = None,
) -> Annotations:
    """Read the annotation files of a data set in the format `kind`.

    Args:
        kind: "diving48" (also the embedded stick diving), "ssv2", "folder" (one per class), "csv"
            or "mmaction" (its annotation lists); each format's file describes its layout.
        root: Data root with the annotation files.
        video_folder, train_file, test_file, class_file: Names below the root that replace the
            format's own.

    Raises:
        DataError: The root or a file is missing, or an entry is wrong; the message names it.
    """
    root = Path(root)
    if kind not in _READERS:
        raise DataError(f"dataset.format {kind!r} is unknown; expected one of {sorted(_READERS)}")
    if not root.is_dir():
        raise DataError(
            f"data root {root} does not exist; put the data set there or set dataset.root "
            "(the embedded data set is rendered by `python cli.py prepare`)"
        )
    return _READERS[kind](root, Sources(video_folder, train_file, test_file, class_file))
