"""Annotation files in, a list of annotated clips out; no video is opened here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import diving48
from dsts_pipeline.clips.annotation import AnnotatedClip

__all__ = ["AnnotatedClip", "Annotations", "read_annotations"]


@dataclass(frozen=True)
class Annotations:
    """What a data set's annotation files say.

    Attributes:
        class_names: Name by class number.
        attribute_names, attributes: Per-class attributes, or empty.
        clips: Train first, then test, in file order.
    """

    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]
    clips: tuple[AnnotatedClip, ...]


def _read_diving48(root: Path) -> Annotations:
    vocabulary = diving48.read_vocabulary(root / diving48.VOCABULARY_FILE)
    clips: list[AnnotatedClip] = []
    for split, name in diving48.SPLIT_FILES.items():
        clips += diving48.read_split(root / name, split, num_classes=len(vocabulary))
    names = tuple(" ".join(entry) for entry in vocabulary)
    return Annotations(names, diving48.ATTRIBUTE_NAMES, vocabulary, tuple(clips))


_READERS: dict[str, Callable[[Path], Annotations]] = {"diving48": _read_diving48}


def read_annotations(kind: str, root: str | Path) -> Annotations:
    """Read the annotation files of a data set in the format `kind`.

    Args:
        kind: "diving48" (also the embedded stick diving).
        root: Data root with the annotation files.

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
    return _READERS[kind](root)
