"""One entry of an annotation file, and the check that its file name stays in the data root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from dsts_pipeline.base.errors import DataError


@dataclass(frozen=True)
class AnnotatedClip:
    """A clip as annotated; its video has not been looked at.

    Attributes:
        id: Name in the data set.
        path: Video file relative to the data root.
        label: Class number.
        split: "train" or "test".
        start_frame, end_frame: Annotated range of frames, half-open; None for the whole file.
    """

    id: str
    path: str
    label: int
    split: str
    start_frame: int | None = None
    end_frame: int | None = None


def check_inside_root(path: str, source: str) -> str:
    """Return `path` if it is relative and cannot leave the data root.

    Raises:
        DataError: It is absolute or climbs with "..".
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\x00" in path:
        raise DataError(
            f"{source}: file name {path!r} leads out of the data root; expected a name inside it"
        )
    return str(pure)
