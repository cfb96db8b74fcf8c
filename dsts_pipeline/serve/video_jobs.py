"""What a decode process is asked about a video that is in no index; nothing here needs torch.

Enters: a path, and how the backbone is fed. Leaves: the frames of the views that extraction would
have taken of such a test clip, with what the file holds and how long it took.

All of it, the first look at the file too, happens in the process: a decoder may hang on a file's
header as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from dsts_pipeline.clips.decode import VideoInfo, decode_frames, probe
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.frames.decode_job import Decoded, DecodeJob, Stopwatch, decode_views
from dsts_pipeline.extract.frames.pipelines import Pipeline
from dsts_pipeline.extract.frames.views import ClipInput, ViewPlan, Views
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
