"""Annotation files in, a list of annotated clips out; no video is opened here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import Annotations, Sources, check_text
from dsts_pipeline.clips.class_folders import read_folders
from dsts_pipeline.clips.diving48 import read_diving48
from dsts_pipeline.clips.ssv2 import read_ssv2
from dsts_pipeline.clips.tables import read_csv, read_mmaction

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
    allow_outside_root: bool = False,
    test_fraction: float = 0.0,
) -> Annotations:
    """Read the annotation files of a data set in the format `kind`.

    Args:
        kind: "diving48" (also the embedded stick diving), "ssv2", "folder" (one per class), "csv"
            or "mmaction" (its annotation lists); each format's file describes its layout.
        root: Data root with the annotation files.
        video_folder, train_file, test_file, class_file: Names below the root that replace the
            format's own.
        allow_outside_root: Whether videos may lie elsewhere, by absolute names or links.
        test_fraction: Share of the clips that will be taken as the split "test", which must not be
            annotated then.

    Raises:
        DataError: The root or a file is missing, an entry is wrong, or there is no split "test"
            and none is asked for; the message says where.
    """
    root = Path(root)
    check_text(str(root), "name", "dataset.root")
    if kind not in _READERS:
        raise DataError(f"dataset.format {kind!r} is unknown; expected one of {sorted(_READERS)}")
    if root.exists() and not root.is_dir():
        raise DataError(f"data root {root} is a file; set dataset.root to the folder it is in")
    if not root.is_dir():
        raise DataError(
            f"data root {root} does not exist; put the data set there or set dataset.root "
            "(the embedded data set is rendered by `python cli.py prepare`)"
        )
    sources = Sources(video_folder, train_file, test_file, class_file, allow_outside_root)
    annotations = _READERS[kind](root, sources)
    if annotations.unsplit and not test_fraction:
        raise DataError(
            f"{annotations.unsplit}: there is nothing to report results on; add a test split, or "
            "let one be drawn: set dataset.test_fraction, such as 0.2 (by class, whole groups)"
        )
    if test_fraction and not annotations.unsplit:
        raise DataError(
            "the annotations have a test split of their own: set dataset.test_fraction to 0"
        )
    return annotations
