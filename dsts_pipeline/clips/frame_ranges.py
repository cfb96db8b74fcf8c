"""Annotated ranges, in frames or seconds, and what videos hold in; half-open ranges of frames out.

Whether an annotated `end_frame` still belongs to its clip differs between data sets, and published
readers of Diving48 disagree about it. Where clips fill their videos, the frame counts tell: an end
equal to the count cannot be a frame of the clip (frames count from 0), an end one below it is the
last frame.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dsts_pipeline.clips.annotation import AnnotatedClip
from dsts_pipeline.clips.probe import VideoInfo

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
