"""What a decode process does for `predict` and the page; nothing here needs torch.

Enters: a video that is in no index, and how the backbone is fed. Leaves: the frames of the views
that extraction would have taken of such a test clip, with what the file holds and how long it took.

All of it, the first look at the file too, happens in the process: a decoder may hang on a file's
header as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import VIDEO_SUFFIXES
from dsts_pipeline.clips.probe import VideoInfo, probe
from dsts_pipeline.extract.decode_pool import Decoded, Stopwatch, decode_clip, decode_views
from dsts_pipeline.extract.views import DecodeJob, FrameRequest, InputRule, Views, view_at_test
from dsts_pipeline.serve.annotate import AnnotateJob, annotate


@dataclass(frozen=True, kw_only=True)
class VideoJob(DecodeJob):
    """The frames of a whole video, in as many views as a test clip has; which, its length decides.

    Attributes:
        input: How the backbone is fed.
        views: How many views a test clip has.
    """

    input: InputRule
    views: Views

    @property
    def answer_bytes(self) -> int:
        """Size of the frames."""
        rule = self.input
        pixels = rule.num_frames * rule.size_px**2
        return self.views.num_test * pixels * rule.num_channels


@dataclass(frozen=True)
class DecodedVideo(Decoded):
    """Frames uint8 [V, T, H, W, 3], what the file holds, and seconds by part."""

    info: VideoInfo | None = None
    decode_seconds: float = 0.0
    transform_seconds: float = 0.0


def work(job: DecodeJob) -> np.ndarray | Decoded:
    """What a decode process does with a job of any of the kinds.

    Raises:
        VideoError: The video cannot be used; the message says why.
    """
    if isinstance(job, FrameRequest):
        return decode_clip(job)
    if isinstance(job, AnnotateJob):
        return annotate(job)
    assert isinstance(job, VideoJob)
    return look_and_decode(job)


def look_and_decode(job: VideoJob) -> DecodedVideo:
    """The frames that extraction would have taken.

    Raises:
        VideoError: The video cannot be used.
    """
    started = time.perf_counter()
    transforming = Stopwatch()
    rule = job.input
    info = probe(job.path)
    request = FrameRequest(
        job.path,
        job.decoder,
        job.fallback,
        views=tuple(
            view_at_test(rule, job.views, number, info.num_frames, info.fps or None)
            for number in range(job.views.num_test)
        ),
        size_px=rule.size_px,
        resize_px=rule.resize_px,
        **rule.scaling,
        info=info,
    )
    frames = decode_views(request, transforming)
    seconds = time.perf_counter() - started
    return DecodedVideo(
        frames,
        info=info,
        decode_seconds=seconds - transforming.seconds,
        transform_seconds=transforming.seconds,
    )


# ---- files and folders as typed -> the videos that are meant, in a fixed order ------------------


@dataclass(frozen=True)
class VideoList:
    """Videos, each once, and how many files of folders were left out as no videos by name."""

    paths: tuple[Path, ...]
    num_left_out: int = 0


def list_videos(sources: Sequence[Path]) -> VideoList:
    """Files as given, whatever their names, and all videos by name below folders.

    Raises:
        DataError: There is no such file or folder, or no video in any of them.
    """
    paths: dict[Path, None] = {}
    num_left_out = 0
    for source in sources:
        if not os.path.exists(source):  # also where the name is too long for the system
            raise DataError(f"{source}: no such file or folder; expected videos or folders")
        if not source.is_dir():
            paths[source] = None
            continue
        files = sorted(path for path in source.rglob("*") if not path.is_dir())
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        paths |= dict.fromkeys(videos)
        num_left_out += len(files) - len(videos)
    if not paths:
        raise DataError(
            f"{', '.join(map(str, sources))}: no video in it; expected files that end in "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return VideoList(tuple(paths), num_left_out)
