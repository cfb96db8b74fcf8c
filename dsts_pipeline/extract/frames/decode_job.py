"""What a decode process is asked, and what it answers: one video, the frames of its views.

Enters: a path with the digest that its content must have, and which frames are wanted. Leaves:
uint8 [V, T, H, W, 3], a row per view, or the reason why there is none. Nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import tell_briefly, tell_trace
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.clips.decode import Decoder, VideoError, VideoInfo, decode_frames
from dsts_pipeline.extract.frames.augmentation import Augmentation, augment
from dsts_pipeline.extract.frames.resize import resize_frames, scaled_size

CENTRE = 1


@dataclass(frozen=True)
class FrameView:
    """One view of a clip.

    Attributes:
        indices: Frame numbers in the file, T of them.
        crop: Where the square lies along the longer side: 0 at its start, 1 in the middle, 2 at
            its end. Not looked at where the view is augmented.
        seed: Of the augmentation; None: the view is not augmented.
        is_flipped: Whether an augmented view is mirrored left to right.
    """

    indices: tuple[int, ...]
    crop: int = CENTRE
    seed: int | None = None
    is_flipped: bool = False


@dataclass(frozen=True)
class DecodeJob:
    """Some views of the video at `path`, whose content must have this size and digest.

    Attributes:
        resize_px: What the shorter side is scaled to before a square of `size_px` is cut.
        like_opencv: Scale as mmaction2's pipelines do, by OpenCV's bilinear rule; otherwise the
            decoder scales.
        fallback: Tried where `decoder` fails; None: nothing is.
        augmentation: What happens to views that have a seed.
        info: What the file with this digest is, where that is known.
    """

    path: str
    views: tuple[FrameView, ...]
    size_bytes: int
    sha256: str
    decoder: Decoder
    size_px: int
    resize_px: int
    like_opencv: bool = False
    fallback: Decoder | None = None
    augmentation: Augmentation = Augmentation()
    info: VideoInfo | None = None

    @property
    def frame_bytes(self) -> int:
        """Size of the answer."""
        return sum(len(view.indices) for view in self.views) * self.size_px**2 * 3


@dataclass(frozen=True)
class Decoded:
    """Frames uint8 [V, T, H, W, 3], or None and the reason why there are none.

    Attributes:
        trace: Where an error came up that nobody foresaw: one of this program's or a library's.
    """

    frames: np.ndarray | None
    reason: str = ""
    trace: str = ""


DecodeFunction = Callable[[Any], np.ndarray | Decoded]
"""Frames of a `DecodeJob` (or a job derived from it), or a `Decoded` that says more than that."""


class Stopwatch:
    """How long the blocks inside `running` took together, in seconds."""

    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def answer(decode: DecodeFunction, job: DecodeJob) -> Decoded:
    """What became of `job`: frames, or the reason why there are none.

    Whatever a decoder makes of a file, it is that file's failure: one must not stop all others.
    """
    try:
        made = decode(job)
        return made if isinstance(made, Decoded) else Decoded(made)
    except VideoError as error:
        return Decoded(None, error.reason)
    except MemoryError:
        return Decoded(None, "decoding it takes more memory than there is")
    except Exception as error:
        failed = fail_unforeseen(job, error)
        if job.fallback is None or job.fallback == job.decoder:
            return failed
        other = answer(decode, replace(job, decoder=job.fallback))
        if other.frames is not None:
            return other
        return replace(failed, reason=f"{failed.reason}; {job.fallback}: {other.reason}")


def fail_unforeseen(job: DecodeJob, error: Exception) -> Decoded:
    """The answer to a job that ended with an error that nobody foresaw; it names no folder."""
    told = tell_briefly(error).replace(job.path, Path(job.path).name)
    return Decoded(None, f"decoding failed: {told}", tell_trace(error))


def decode_clip(job: DecodeJob) -> np.ndarray:
    """Decode `job` after checking that the file is still the one that was indexed.

    The check also catches the damage that decord would paper over.

    Raises:
        VideoError: The file changed since it was indexed, or cannot be decoded.
    """
    _check_content(job)
    return decode_views(job, Stopwatch())


def decode_views(job: DecodeJob, transforming: Stopwatch) -> np.ndarray:
    """Decode `job` whatever the file's content is.

    Args:
        transforming: Is told the time of scaling, where that is not the decoder's, and of cutting.

    Raises:
        VideoError: It cannot be decoded.
    """
    try:
        return _decode_views(job, transforming)
    except VideoError as error:
        if job.fallback is None or job.fallback == job.decoder:
            raise
        first = error.reason
    try:
        return _decode_views(replace(job, decoder=job.fallback), transforming)
    except VideoError as error:
        both = first if error.reason == first else f"{first}; {job.fallback}: {error.reason}"
        raise VideoError(job.path, both) from None


def _check_content(job: DecodeJob) -> None:
    try:
        num_bytes = Path(job.path).stat().st_size
        if num_bytes != job.size_bytes:
            reason = f"{num_bytes} bytes, {job.size_bytes} when it was indexed"
            raise VideoError(job.path, reason)
        if sha256_file(job.path) != job.sha256:
            raise VideoError(job.path, "its content changed since it was indexed")
    except OSError as error:
        raise VideoError(job.path, f"it cannot be read ({error.strerror})") from None


def _decode_views(job: DecodeJob, transforming: Stopwatch) -> np.ndarray:
    """Every frame is decoded once, whichever views show it."""
    numbers = np.unique(np.concatenate([view.indices for view in job.views]))
    if job.like_opencv:
        scale = partial(_scale, shorter_px=job.resize_px, transforming=transforming)
        whole = decode_frames(job.path, numbers, decoder=job.decoder, scale=scale, info=job.info)
    else:
        whole = decode_frames(
            job.path,
            numbers,
            decoder=job.decoder,
            size_px=job.resize_px,
            is_cut=False,
            info=job.info,
        )
    if min(whole.shape[1:3]) < job.size_px:
        raise VideoError(
            job.path, f"frames of {whole.shape[2]} x {whole.shape[1]} px are too small"
        )
    with transforming.running():
        return _cut_views(job, whole, numbers)


def _cut_views(job: DecodeJob, whole: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    shape = (len(job.views), len(job.views[0].indices), job.size_px, job.size_px, 3)
    frames = np.empty(shape, np.uint8)
    for row, view in zip(frames, job.views, strict=True):
        shown = whole[np.searchsorted(numbers, view.indices)]
        if view.seed is None:
            row[:] = _cut_square(shown, job.size_px, view.crop)
        else:
            row[:] = augment(
                shown, job.augmentation, job.size_px, seed=view.seed, is_flipped=view.is_flipped
            )
    return frames


def _scale(frames: np.ndarray, shorter_px: int, transforming: Stopwatch) -> np.ndarray:
    with transforming.running():
        return resize_frames(frames, *scaled_size(frames.shape[2], frames.shape[1], shorter_px))


def _cut_square(frames: np.ndarray, size_px: int, crop: int) -> np.ndarray:
    """The square number `crop` of three along the longer side, as mmaction2's ThreeCrop cuts it."""
    steps = [(length - size_px) // 2 for length in frames.shape[1:3]]
    is_wide = frames.shape[2] >= frames.shape[1]
    top, left = (steps[0], crop * steps[1]) if is_wide else (crop * steps[0], steps[1])
    return frames[:, top : top + size_px, left : left + size_px]
