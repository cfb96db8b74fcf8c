"""Frames -> bytes of a video file; equal frames give equal bytes.

Enters: uint8 [T, H, W, 3], RGB. Leaves: H.264 in mp4, as Diving48 has it, or VP9 in webm, as
Something-Something v2 has it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import av
import numpy as np

FRAMES_PER_SECOND = 12


def encode_mp4(frames: np.ndarray, *, quality: int = 20) -> bytes:
    """H.264 in mp4, single-threaded so that equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        quality: x264's constant rate factor; lower is better.
    """
    options = {
        "crf": str(quality),
        "preset": "veryfast",
        "threads": "1",
        # Without it, x264's macroblock tree rounds differently from call to call.
        "x264-params": "cpu-independent=1",
    }
    return _encode(frames, "mp4", "libx264", options)


def encode_webm(frames: np.ndarray, *, quality: int = 32) -> bytes:
    """VP9 in webm, by libvpx's fastest setting; equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        quality: VP9's constrained quality, 0 to 63; lower is better.
    """
    options = {"crf": str(quality), "deadline": "realtime", "cpu-used": "8", "threads": "1"}
    # Without it, the container gets random identifiers.
    return _encode(frames, "webm", "libvpx-vp9", options, {"fflags": "+bitexact"})


def _encode(
    frames: np.ndarray,
    container_format: str,
    codec: str,
    options: Mapping[str, str],
    container_options: Mapping[str, str] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    arguments: dict[str, Any] = {"options": dict(container_options)} if container_options else {}
    with av.open(buffer, "w", format=container_format, **arguments) as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        if codec == "libvpx-vp9":
            stream.codec_context.bit_rate = 0  # quality decides, not a rate
        stream.options = dict(options)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()
