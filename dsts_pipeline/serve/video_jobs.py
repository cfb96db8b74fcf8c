"""What a decode process is asked about a video that is in no index; nothing here needs torch.

Enters: a path, and how the backbone is fed. Leaves: the frames of the views that extraction would
have taken of such a test clip, with what the file holds and how long it took.

All of it, the first look at the file too, happens in the process: a decoder may hang on a file's
header as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import VIDEO_SUFFIXES
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.probe import VideoInfo, probe
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.decode_pool import Decoded, DecodeJob, Stopwatch, decode_views
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.views import ClipInput, ViewPlan, Views
from dsts_pipeline.serve.annotate import AnnotateJob, annotate

NUM_PREVIEW_FRAMES = 16


@dataclass(frozen=True)
class InputRule:
    """How a backbone is fed; see `Backbone`."""

    num_frames: int
    size_px: int
    resize_px: int
    pipeline: Pipeline | None = None


@dataclass(frozen=True)
class VideoJob(DecodeJob):
    """The views of a whole video, as many as a test clip has.

    Attributes:
        input: How the backbone is fed.
        test_clips, test_crops: See `Views`.
    """

    input: ClipInput = InputRule(1, 1, 1)
    test_clips: int = 1
    test_crops: int = 1

    @property
    def frame_bytes(self) -> int:
        """Size of the answer."""
        num_frames = self.test_clips * self.test_crops * self.input.num_frames
        return num_frames * self.size_px**2 * 3


@dataclass(frozen=True)
class PreviewJob(DecodeJob):
    """A few frames of a whole video, the shorter side `size_px`, a square cut from the middle.

    Attributes:
        first, end: The frames that belong to the clip; None: all.
    """

    first: int = 0
    end: int | None = None

    @property
    def frame_bytes(self) -> int:
        """Size of the answer."""
        return NUM_PREVIEW_FRAMES * self.size_px**2 * 3


@dataclass(frozen=True)
class SeenVideo(Decoded):
    """Frames uint8 [V, T, H, W, 3], what the file holds, and seconds by part."""

    info: VideoInfo | None = None
    decode_seconds: float = 0.0
    transform_seconds: float = 0.0


def work(job: DecodeJob) -> np.ndarray | Decoded:
    """What a decode process does with a job of any of the kinds.

    Raises:
        VideoError: The video cannot be used; the message says why.
    """
    if isinstance(job, PreviewJob):
        return _preview(job)
    if isinstance(job, AnnotateJob):
        return annotate(job)
    assert isinstance(job, VideoJob)
    return look_and_decode(job)


def look_and_decode(job: VideoJob) -> SeenVideo:
    """The frames that extraction would have taken.

    Raises:
        VideoError: The video cannot be used.
    """
    started, transforming = time.perf_counter(), Stopwatch()
    info = probe(job.path)
    clip = Clip(
        id=job.path,
        path=job.path,
        label=0,
        split="test",
        num_frames=info.num_frames,
        start_frame=0,
        end_frame=info.num_frames,
        size_bytes=0,
        sha256="",
        fps=info.fps,
    )
    index = ClipIndex("", "", ("",), (), (), (clip,))
    views = Views(test_clips=job.test_clips, test_crops=job.test_crops)
    plan = ViewPlan(index, job.input, views, job.decoder, job.fallback)
    views_of_it = tuple(plan.frame_view(row) for row in plan.rows)
    shown = replace(job, views=views_of_it, info=info)
    frames = decode_views(shown, transforming)
    seconds = time.perf_counter() - started
    return SeenVideo(
        frames,
        info=info,
        decode_seconds=seconds - transforming.seconds,
        transform_seconds=transforming.seconds,
    )


def _preview(job: PreviewJob) -> np.ndarray:
    end = probe(job.path).num_frames if job.end is None else job.end
    numbers = job.first + uniform_frames(end - job.first, NUM_PREVIEW_FRAMES)
    return decode_frames(job.path, numbers, decoder=job.decoder, size_px=job.size_px)[None]


# ---- Files and folders as typed -> the videos that are meant, in a fixed order. -----------------


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


def name_outputs(paths: Sequence[Path], suffix: str) -> list[str]:
    """A file name for each of `paths`: its stem, numbered where two have the same, and `suffix`."""
    names: dict[str, None] = {}
    for path in paths:
        stem, number = path.stem, 2
        while stem + suffix in names:
            stem, number = f"{path.stem}-{number}", number + 1
        names[stem + suffix] = None
    return list(names)
