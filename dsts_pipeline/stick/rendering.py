"""What both renderers need: the record that describes one, parts of a frame, bytes of a video file.

Frames are drawn by Pillow at `FINE` times their size, then averaged down. Equal frames give equal
bytes: H.264 in mp4, as Diving48 has it, or VP9 in webm, as Something-Something v2 has it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.base.settings import RenderSettings

Colour = tuple[int, int, int]  # RGB, 0 to 255

FINE = 3  # drawn pixels per frame pixel, in each direction
_BACKGROUND_FRAMES = 2.6  # side of the background, in frames
_FRAMES_PER_SECOND = 12


@dataclass(frozen=True)
class Renderer:
    """An embedded data set: what its clips show, and the files that it consists of.

    Attributes:
        title: What the data set is called in messages.
        clip_title: What its clips are called in a model card.
        version: Raised when a clip's bytes change.
        class_names: Name by class number; clip `number` of a split is of class `number` modulo
            their count.
        draw: `(seed, split, number, label=, size_px=, num_frames=, difficulty=, group=)` -> the
            clip, before it is rendered. Splits share no random stream. `label` None: the class that
            `number` stands for. `size_px` is the frames' height and width, `difficulty` the
            strength of the nuisances, from 0 to 3, `group` the clip's group in its split or None.
        render: That clip -> frames, uint8 [T, H, W, 3], RGB.
        encode: Frames -> bytes of a video file.
        count_clips: Settings -> number of clips by split.
        name_video: `(split, number, group)` -> path of the clip's file below the data root.
        annotate: Settings -> content of every annotation file (JSON), by path below the data root.
        stale: Patterns of all files that a rendering by any settings makes.
        target_names, targets: What moves in each frame, for pretraining: names, and that clip ->
            float32 [T, P].
        mirror_signs: Factors of the targets where a clip is mirrored, [P].
        flipped: The class that a clip of each class shows when mirrored, [num_classes].
    """

    title: str
    clip_title: str
    version: int
    class_names: tuple[str, ...]
    draw: Callable[..., Any]
    render: Callable[[Any], np.ndarray]
    encode: Callable[[np.ndarray], bytes]
    count_clips: Callable[[RenderSettings], dict[str, int]]
    name_video: Callable[[str, int, int | None], str]
    annotate: Callable[[RenderSettings], dict[str, Any]]
    stale: tuple[str, ...]
    target_names: tuple[str, ...]
    targets: Callable[[Any], np.ndarray]
    mirror_signs: np.ndarray
    flipped: np.ndarray


def ramp(value: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, a smooth step between."""
    x = min(max((value - start) / (end - start), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


# ---- background and development of a frame -------------------------------------------------------


def draw_background(generator: np.random.Generator, size_px: int, difficulty: float) -> Image.Image:
    """Smooth patches of two scales and a few straight edges, RGB, of 2.6 x 2.6 frames."""
    size = int(size_px * _BACKGROUND_FRAMES)
    values = np.empty((size, size, 3), np.float32)
    values[:] = generator.uniform(80, 180) + generator.normal(0.0, 14.0, 3)
    for cells, amplitude in ((5, 18.0), (16, 10.0)):
        grey = generator.normal(0.0, amplitude * difficulty, (cells, cells, 1))
        patches = grey + generator.normal(0.0, 0.4 * amplitude * difficulty, (cells, cells, 3))
        small = Image.fromarray(np.clip(patches + 128.0, 0, 255).astype(np.uint8))
        smooth = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        values += smooth - 128.0
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(generator.integers(3, 4 + int(8 * difficulty))):
        ends = generator.integers(0, size, 4).tolist()
        shade = generator.uniform(50, 210) + generator.normal(0.0, 16.0, 3)
        red, green, blue = np.clip(shade, 0, 255).astype(int).tolist()
        thickness = int(generator.integers(1, max(2, size_px // 20)))
        draw.line(ends, fill=(red, green, blue), width=thickness)
    return picture


def cut_background(background: Image.Image, shift: np.ndarray, size_px: int) -> Image.Image:
    """The part of the background that a camera sees, `FINE` times too large.

    Args:
        background: See `draw_background`.
        shift: Pixels [2] (x right, y down) from its usual place; it stops at the edges.
        size_px: Frame height and width.
    """
    span = background.width - size_px
    x, y = np.clip(np.array([0.3, 0.3]) * span + shift, 0, span - 1)
    picture = background.transform(
        (size_px, size_px),
        Image.Transform.AFFINE,
        (1, 0, float(x), 0, 1, float(y)),
        Image.Resampling.BILINEAR,
    )
    fine = size_px * FINE
    return picture.resize((fine, fine), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Film:
    """How a clip's pictures become frames.

    Attributes:
        noise: Of the sensor, float32 [2 H, 2 W, 3], cut at a random place for each frame.
        exposure, contrast: Affine change of all values.
    """

    noise: np.ndarray
    exposure: float
    contrast: float

    def develop(self, picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The frame of a picture, both uint8 [H, W, 3]."""
        size = picture.shape[0]
        row, column = generator.integers(0, size, 2)
        values = picture.astype(np.float32)
        values -= 128.0
        values *= self.contrast
        values += 128.0 + self.exposure
        values += self.noise[row : row + size, column : column + size]
        return np.clip(values, 0, 255).astype(np.uint8)


# ---- video files ---------------------------------------------------------------------------------


def encode_mp4(frames: np.ndarray) -> bytes:
    """H.264 in mp4, single-threaded so that equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
    """
    options = {
        "crf": "20",
        "preset": "veryfast",
        "threads": "1",
        # Without it, x264's macroblock tree rounds differently from call to call.
        "x264-params": "cpu-independent=1",
    }
    return _encode(frames, "mp4", "libx264", options)


def encode_webm(frames: np.ndarray) -> bytes:
    """VP9 in webm, by libvpx's fastest setting; equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
    """
    options = {"crf": "32", "deadline": "realtime", "cpu-used": "8", "threads": "1"}
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
        stream = container.add_stream(codec, rate=_FRAMES_PER_SECOND)
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
