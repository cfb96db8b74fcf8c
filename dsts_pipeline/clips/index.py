"""The clip index: the checked list of clips that every later stage trusts.

`prepare` writes it as JSON once the videos have been looked at; extraction reads nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, sha256_json, write_json
from dsts_pipeline.clips.probe import INDEXED, VideoInfo

FORMAT = "dsts-clip-index"
FORMAT_VERSION = 3
# Version 1 had no frame rates, sizes, codecs and groups; version 2 nothing of how a file is made.
_READABLE_VERSIONS = (1, 2, 3)


@dataclass(frozen=True)
class Clip:
    """One annotated clip whose video was found and probed.

    Attributes:
        id: Name of the clip in its data set.
        path: Video file, relative to the data root.
        label: Class number.
        split: "train", "val" (held out of train, to choose settings by) or "test".
        num_frames: Frames in the video file, as `clips/probe.py` defines them.
        start_frame, end_frame: Half-open range of frames that belong to the clip.
        size_bytes, sha256: The video file's content.
        fps: Frames a second; 0 where the file does not say.
        width_px, height_px, codec: Of the video file.
        group: What clips of one origin share; None where the annotations don't say.
        container, pixel_format: By FFmpeg's names.
        gop: How groups of pictures hang together, see `VideoInfo`; empty in indexes that were made
            before this was looked at.
        num_hidden, rotation_degrees, num_video_streams: See `VideoInfo`.
        starts_at_zero, is_constant_rate: See `VideoInfo`.
    """

    id: str
    path: str
    label: int
    split: str
    num_frames: int
    start_frame: int
    end_frame: int
    size_bytes: int
    sha256: str
    fps: float = 0.0
    width_px: int = 0
    height_px: int = 0
    codec: str = ""
    group: str | None = None
    container: str = ""
    pixel_format: str = ""
    gop: str = ""
    num_hidden: int = 0
    rotation_degrees: int = 0
    num_video_streams: int = 1
    starts_at_zero: bool = True
    is_constant_rate: bool = True

    @property
    def video_info(self) -> VideoInfo | None:
        """What the file is, less the times of its frames; None where it was not looked at."""
        if not self.gop:
            return None
        kept = {name: getattr(self, name) for name in INDEXED}
        return VideoInfo(self.num_frames, self.fps, self.width_px, self.height_px, **kept)

    @property
    def duration_seconds(self) -> float | None:
        """How long the video is; None where the file does not tell its frame rate."""
        return self.num_frames / self.fps if self.fps else None


@dataclass(frozen=True)
class Problem:
    """An annotated clip that can't be used, and why.

    `kind` is "missing", "outside" (a link out of the data root), "unreadable" or "too short".
    """

    clip_id: str
    split: str
    path: str
    reason: str
    kind: str = "unreadable"


@dataclass(frozen=True)
class ClipIndex:
    """All clips of a data set.

    Attributes:
        dataset: Name of the data set.
        root: Data root that `Clip.path` is relative to.
        class_names: Name by class number.
        attribute_names: Such as takeoff, somersault, twist, position; empty if there are none.
        attributes: One tuple per class, aligned with `attribute_names`.
        clips: Usable clips, in annotation order, train first.
        problems: Annotated clips left out, with reasons.
    """

    dataset: str
    root: str
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]
    clips: tuple[Clip, ...]
    problems: tuple[Problem, ...] = ()

    def of_split(self, split: str) -> tuple[Clip, ...]:
        """The clips of `split`, in order."""
        return tuple(clip for clip in self.clips if clip.split == split)

    def count_splits(self) -> dict[str, int]:
        """Number of usable clips by split."""
        return dict(Counter(clip.split for clip in self.clips))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the features: ids, labels, splits, frames and content.

        The data root's place on the disk is not part of it.
        """
        rows = [
            [c.id, c.label, c.split, c.start_frame, c.end_frame, c.num_frames, c.sha256]
            for c in self.clips
        ]
        return sha256_json({"classes": self.class_names, "clips": rows})

    def save(self, path: str | Path) -> None:
        """Write the index as JSON, atomically; equal indices give equal bytes."""
        content = {"format": FORMAT, "version": FORMAT_VERSION, "digest": self.digest}
        # `asdict` would copy every value of every clip: most of the time for 200,000 of them.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = {name: [vars(row) for row in values[name]] for name in ("clips", "problems")}
        write_json(path, content | values | rows)

    @classmethod
    def load(cls, path: str | Path) -> ClipIndex:
        """Read an index that `save` wrote.

        Raises:
            DataError: The file is missing, of another format, or was changed by hand.
        """
        content = read_json(path)
        found = (content.get("format"), content.get("version")) if isinstance(content, dict) else ()
        if not found or found[0] != FORMAT or found[1] not in _READABLE_VERSIONS:
            raise DataError(
                f"{path}: expected a clip index of version {FORMAT_VERSION}, found {found}; "
                "run `python cli.py prepare`"
            )
        index = cls(
            dataset=content["dataset"],
            root=content["root"],
            class_names=tuple(content["class_names"]),
            attribute_names=tuple(content["attribute_names"]),
            attributes=tuple(tuple(row) for row in content["attributes"]),
            clips=_rebuild(Clip, content["clips"]),
            problems=_rebuild(Problem, content["problems"]),
        )
        if index.digest != content["digest"]:
            raise DataError(
                f"{path}: its digest does not match its clips, so it was changed after "
                "`prepare` wrote it; run `python cli.py prepare` again"
            )
        return index


def _rebuild(kind: type, rows: Sequence[dict[str, Any]]) -> tuple:
    names = [field.name for field in fields(kind)]
    return tuple(kind(**{name: row[name] for name in names if name in row}) for row in rows)
