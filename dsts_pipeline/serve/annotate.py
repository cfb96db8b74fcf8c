"""A video with its answer drawn below the picture: mp4 or GIF; nothing here needs torch.

Enters: a video file, the most probable classes, the route. Leaves: a file, whole or not at all. A
long video is cut off, a large one made smaller, so that time and memory are bounded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsts_pipeline.base.files import open_atomic
from dsts_pipeline.clips.decode import iterate_frames
from dsts_pipeline.clips.probe import probe
from dsts_pipeline.extract.views import DecodeJob

MAX_FRAMES = {".mp4": 1800, ".gif": 240}
_WIDTH_PX = {".mp4": 480, ".gif": 320}
_MAX_HEIGHT_PX = 640
_LINE_PX = 20
_MARGIN_PX = 10
_PAPER = (250, 248, 243)
_INK = (28, 27, 25)
_MUTED = (120, 116, 108)
_BAR = (200, 205, 212)
_BEST = (31, 94, 150)
_DEFAULT_FPS = 25.0


@dataclass(frozen=True, kw_only=True)
class AnnotateJob(DecodeJob):
    """Write the video at `path` to `out` with `bars` (name, probability) and lines of text below.

    `out` ends in .mp4 or .gif.
    """

    out: str
    bars: tuple[tuple[str, float], ...]
    lines: tuple[str, ...]

    @property
    def answer_bytes(self) -> int:
        """The answer is a number."""
        return 8


def annotate(job: AnnotateJob) -> np.ndarray:
    """Write the file; the number of frames written.

    Raises:
        VideoError: The video cannot be decoded to its end, or to where it is cut.
    """
    out = Path(job.out)
    info = probe(job.path)
    panel = draw_panel(job.bars, job.lines, _WIDTH_PX[out.suffix])
    frames = islice(iterate_frames(job.path), MAX_FRAMES[out.suffix])
    composed = (compose(frame, panel) for frame in frames)
    fps = info.fps if 1 <= info.fps <= 240 else _DEFAULT_FPS
    with open_atomic(out) as file:
        num_frames = (_write_gif if out.suffix == ".gif" else _write_mp4)(file, composed, fps)
    return np.array([num_frames])


def draw_panel(
    bars: Sequence[tuple[str, float]], lines: Sequence[str], width_px: int
) -> Image.Image:
    """Classes with bars, the first one marked, then lines of text."""
    height = _LINE_PX * (len(bars) + len(lines)) + 2 * _MARGIN_PX
    panel = Image.new("RGB", (width_px, height + height % 2), _PAPER)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(13)
    left = round(0.58 * width_px)
    right = width_px - _MARGIN_PX - 44
    for row, (name, probability) in enumerate(bars):
        top = _MARGIN_PX + row * _LINE_PX
        draw.text((_MARGIN_PX, top), _fit(name, left - 2 * _MARGIN_PX, font), _INK, font)
        end = left + round((right - left) * probability)
        draw.rectangle((left, top + 4, end, top + 13), _BAR if row else _BEST)
        draw.text((right + 6, top), f"{probability:.1%}", _INK, font)
    for row, line in enumerate(lines, start=len(bars)):
        top = _MARGIN_PX + row * _LINE_PX
        draw.text((_MARGIN_PX, top), _fit(line, width_px - 2 * _MARGIN_PX, font), _MUTED, font)
    return panel


def _fit(text: str, width_px: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` on one line, cut where it would be too wide."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"{text}...") > width_px:
        text = text[:-1]
    return f"{text}..."


def compose(frame: np.ndarray, panel: Image.Image) -> Image.Image:
    """`frame` above `panel`, scaled to its width; tall videos get a margin at their sides."""
    image = Image.fromarray(frame)
    scale = min(panel.width / image.width, _MAX_HEIGHT_PX / image.height)
    width = max(round(image.width * scale), 1)
    height = max(round(image.height * scale / 2) * 2, 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    sheet = Image.new("RGB", (panel.width, height + panel.height), _PAPER)
    sheet.paste(image, ((panel.width - width) // 2, 0))
    sheet.paste(panel, (0, height))
    return sheet


def _write_mp4(file: IO[bytes], pictures: Iterator[Image.Image], fps: float) -> int:
    num_frames = 0
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for picture in pictures:
            if not num_frames:
                stream.width, stream.height = picture.size
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            num_frames += 1
        container.mux(stream.encode())
    return num_frames


def _write_gif(file: IO[bytes], pictures: Iterator[Image.Image], fps: float) -> int:
    """Browsers show no GIF faster than 50 frames a second."""
    palettes = [picture.quantize(128, method=Image.Quantize.FASTOCTREE) for picture in pictures]
    buffer = io.BytesIO()
    duration = max(round(1000 / fps), 20)
    palettes[0].save(
        buffer, "GIF", save_all=True, append_images=palettes[1:], duration=duration, loop=0
    )
    file.write(buffer.getvalue())
    return len(palettes)
