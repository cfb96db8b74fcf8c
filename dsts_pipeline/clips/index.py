"""The clip index: the checked list of clips that every later stage trusts.

`prepare` writes it as JSON once the videos have been looked at; extraction reads nothing else.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, sha256_json, write_json
from dsts_pipeline.clips.annotation import AnnotatedClip
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


# ---- which frames belong to an annotated clip ----------------------------------------------------
#
# Whether an annotated `end_frame` still belongs to its clip differs between data sets, and
# published readers of Diving48 disagree about it. Where clips fill their videos, the frame counts
# tell: an end equal to the count cannot be a frame of the clip (frames count from 0), an end one
# below it is the last frame.

EndFrame = Literal["auto", "exclusive", "inclusive"]
# A time that means a frame's start may be a hair beside it after rounding to milliseconds.
_FRAME_TOLERANCE = 0.02


@dataclass(frozen=True)
class EndFrameRule:
    """How `end_frame` is read, and what speaks for it.

    Attributes:
        rule: "exclusive" or "inclusive".
        setting: What was asked for, "auto" included.
        num_annotated: Clips with an end_frame and a video that can be read.
        num_at_count: Of these, clips whose end_frame equals the number of frames: exclusive ones.
        num_at_last: Clips whose end_frame is the last frame's number: inclusive ones.
        num_beyond: Clips whose end_frame is beyond both; their range is cut at the file's end.
    """

    rule: str
    setting: str
    num_annotated: int = 0
    num_at_count: int = 0
    num_at_last: int = 0
    num_beyond: int = 0

    def __str__(self) -> str:
        return (
            f"end_frame is {self.rule} ({self.setting}): of {self.num_annotated:,} clips "
            f"{self.num_at_count:,} end at their video's frame count, {self.num_at_last:,} at its "
            f"last frame, {self.num_beyond:,} beyond it"
        )


def decide_end_frame(
    clips: Iterable[tuple[AnnotatedClip, int]], setting: EndFrame = "auto"
) -> EndFrameRule:
    """Settle how `end_frame` is read.

    Choice: "auto" follows the majority of the clips that end where their video ends; without any,
    it is exclusive, as ranges are in Python.

    Args:
        clips: Clips with their video's number of frames.
    """
    beyond = [clip.end_frame - frames for clip, frames in clips if clip.end_frame is not None]
    at_count, at_last = beyond.count(0), beyond.count(-1)
    rule = setting
    if setting == "auto":
        rule = "inclusive" if at_last > at_count else "exclusive"
    num_beyond = sum(number > 0 for number in beyond)
    return EndFrameRule(rule, setting, len(beyond), at_count, at_last, num_beyond)


def frames_of(clip: AnnotatedClip, info: VideoInfo, *, rule: str) -> tuple[int, int]:
    """The half-open range of frames that belongs to `clip`, cut at the file's end.

    A frame belongs to a range of seconds if it is shown first within it. Seconds count from the
    first frame that is shown, as players count them: frame i at i / fps, or where the rate varies,
    at the time that the file says.

    Raises:
        ValueError: Seconds are annotated, but the file does not say how many frames a second has.
    """
    start, end = clip.start_frame or 0, clip.end_frame
    if end is not None and rule == "inclusive":
        end += 1
    if clip.start_seconds is not None or clip.end_seconds is not None:
        if info.fps <= 0 and not info.times_seconds:
            raise ValueError("its range is in seconds, and the file does not tell its frame rate")
        start = _frame_at(clip.start_seconds or 0.0, info)
        end = None if clip.end_seconds is None else _frame_at(clip.end_seconds, info)
    return start, info.num_frames if end is None else min(end, info.num_frames)


def _frame_at(seconds: float, info: VideoInfo) -> int:
    """The first frame that is shown at `seconds` or later."""
    if not info.times_seconds:
        return math.ceil(seconds * info.fps - _FRAME_TOLERANCE)
    times = info.times_seconds
    tolerance_seconds = _FRAME_TOLERANCE * times[-1] / max(len(times) - 1, 1)
    return bisect_left(times, seconds - tolerance_seconds)
