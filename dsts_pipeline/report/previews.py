"""Moving previews of clips: each clip's frames once, side by side in one WebP strip (a data URI).

Enters: a function that yields a clip's frames. Leaves: strips, which the page moves with CSS:
they can be paused and need no script.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dsts_pipeline.base.errors import UserError, tell_briefly

NUM_FRAMES = 12
WEBP_QUALITY = 55

FramesOf = Callable[[str], np.ndarray]  # clip id -> uint8 [T, H, W, 3], RGB


@dataclass(frozen=True)
class Preview:
    """One clip; `strip` is its place in `Previews.strips`, None if it has none for `problem`."""

    clip_id: str
    row: int
    strip: int | None
    problem: str = ""


class Previews:
    """Renders the previews that are asked for, each clip at most once, up to a total size.

    Args:
        clip_ids: of all rows.
        frames_of: see `FramesOf`; None: there are no previews.
        size_px: height and width of a frame.
        max_bytes: of all strips as they stand in the page; what exceeds it stays without a strip.
    """

    def __init__(
        self,
        clip_ids: Sequence[str],
        frames_of: FramesOf | None,
        *,
        size_px: int = 72,
        max_bytes: int = 12_000_000,
    ) -> None:
        self._clip_ids = clip_ids
        self._frames_of = frames_of
        self._max_bytes = max_bytes
        self._known: dict[int, Preview] = {}
        self._num_bytes = 0
        self.size_px = size_px
        self.num_frames = NUM_FRAMES
        self.strips: list[str] = []

    @property
    def full(self) -> bool:
        """Whether the next clip would stay without a strip."""
        return self._frames_of is None or self._num_bytes >= self._max_bytes

    def of(self, row: int) -> Preview:
        """The preview of a row; one that can't be read carries the reason."""
        if row not in self._known:
            self._known[row] = self._render(row)
        return self._known[row]

    def strip_numbers(self) -> dict[str, int]:
        """Strip's number by clip, of the clips that have one."""
        known = self._known.values()
        return {one.clip_id: one.strip for one in known if one.strip is not None}

    def _render(self, row: int) -> Preview:
        clip_id = self._clip_ids[row]
        if self._frames_of is None:
            return Preview(clip_id, row, None, "the videos are not at hand")
        if self.full:
            return Preview(clip_id, row, None, "left out to keep the page small")
        try:
            strip = strip_uri(self._frames_of(clip_id), self.size_px)
        except UserError as error:
            return Preview(clip_id, row, None, str(error))
        except Exception as error:  # whatever a decoder makes of one video
            return Preview(clip_id, row, None, f"decoding failed: {tell_briefly(error)}")
        self.strips.append(strip)
        self._num_bytes += len(strip)
        return Preview(clip_id, row, len(self.strips) - 1)


def strip_uri(frames: np.ndarray, size_px: int) -> str:
    """`NUM_FRAMES` frames, spread evenly over uint8 `[T, H, W, 3]`, as one row in a data URI."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]")
    picked = np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int)
    strip = Image.new("RGB", (NUM_FRAMES * size_px, size_px))
    for place, index in enumerate(picked):
        frame = Image.fromarray(np.ascontiguousarray(frames[index]))
        frame.thumbnail((size_px, size_px), Image.Resampling.BILINEAR)
        if frame.width < size_px and frame.height < size_px:
            scale = size_px / max(frame.size)
            size = (round(frame.width * scale), round(frame.height * scale))
            frame = frame.resize(size, Image.Resampling.BILINEAR)
        left = (size_px - frame.width) // 2
        top = (size_px - frame.height) // 2
        strip.paste(frame, (place * size_px + left, top))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=WEBP_QUALITY, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
