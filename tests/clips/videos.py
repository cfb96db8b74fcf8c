"""Small real video files, written with PyAV, whose frames can be told apart by their grey."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def gray_of(frame: int) -> int:
    """The grey level that frame number `frame` of every video here is painted in."""
    return 10 + 9 * frame % 220


def write_video(
    path: Path,
    *,
    num_frames: int = 24,
    size: tuple[int, int] = (64, 64),
    codec: str = "libx264",
    faststart: bool = False,
    seed: int = 0,
    pixel_format: str = "yuv420p",
    rotation_degrees: int = 0,
    duration_ticks: Callable[[int], int] | None = None,
    muxer_options: dict[str, str] | None = None,
) -> Path:
    """A video of `size` (width, height): grey frames with a noisy band on top.

    Args:
        rotation_degrees: Counterclockwise, by the display matrix.
        duration_ticks: How many 24ths of a second frame i is shown; all one by default.
    """
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = ({"movflags": "faststart"} if faststart else {}) | (muxer_options or {})
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=24)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.gop_size = 8
        if rotation_degrees:
            stream.set_display_rotation(rotation_degrees)
        shown_at = 0
        for number in range(num_frames):
            image = np.full((size[1], size[0], 3), gray_of(number), np.uint8)
            image[: size[1] // 4] = rng.integers(0, 256, (size[1] // 4, size[0], 3))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = shown_at, Fraction(1, 24)
            shown_at += duration_ticks(number) if duration_ticks else 1
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A file with sound only."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
