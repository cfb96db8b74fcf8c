"""Pictures of clips: each clip's frames once, side by side in one WebP strip (a data URI).

Enters: functions that yield a clip's frames, or what the model saw and attended to. Leaves: strips,
which the page moves, or lays out as a film, with CSS: they can be paused and need no script.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from dsts_pipeline.base.errors import UserError, tell_briefly

NUM_FRAMES = 12
WEBP_QUALITY = 55
NARROWEST = 2 / 3  # width by height of a frame; what is narrower or wider loses its ends
WIDEST = 16 / 9

FramesOf = Callable[[str], np.ndarray]  # clip id -> uint8 [T, H, W, 3], RGB


# ---- frames to a strip --------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """`NUM_FRAMES` frames of a clip in a row, and the width of one by its height."""

    uri: str
    ratio: float


def make_strip(frames: np.ndarray, size_px: int) -> Strip:
    """`NUM_FRAMES` frames, spread evenly over uint8 `[T, H, W, 3]`, in one picture.

    Frames keep their shape, but for the ends of very long ones, and are never enlarged.

    Args:
        size_px: the longer side of a frame, at most.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]")
    frames = _without_ends(frames)
    height, width = frames.shape[1:3]
    scale = min(1.0, size_px / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    strip = Image.new("RGB", (NUM_FRAMES * size[0], size[1]))
    for place, index in enumerate(spread(len(frames), NUM_FRAMES)):
        frame = Image.fromarray(np.ascontiguousarray(frames[index]))
        strip.paste(frame.resize(size, Image.Resampling.BILINEAR), (place * size[0], 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=WEBP_QUALITY, method=3)
    return Strip(_data_uri("webp", buffer), round(size[0] / size[1], 4))


def strip_uri(frames: np.ndarray, size_px: int) -> str:
    """The picture of `make_strip` alone."""
    return make_strip(frames, size_px).uri


def spread(length: int, number: int) -> list[int]:
    """`number` of the places 0 to `length - 1`, evenly, the first and the last among them."""
    return [int(place) for place in np.linspace(0, length - 1, number).round()]


def _without_ends(frames: np.ndarray) -> np.ndarray:
    """The middle of frames that are longer than the page has room for."""
    height, width = frames.shape[1:3]
    kept_width = min(width, max(1, round(height * WIDEST)))
    kept_height = min(height, max(1, round(width / NARROWEST)))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return frames[:, top : top + kept_height, left : left + kept_width]


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode()


# ---- what an attentive readout took -------------------------------------------------------------

SHADE_SCALE = 8  # pixels of a shade per position of the map
DARKEST = 0.5  # of black, over what was taken least: the frame stays to be seen


@dataclass(frozen=True, eq=False)
class Seen:
    """What the model saw of a clip, and how much its readout took of each part.

    Args:
        frames: uint8 `[T', S, S, 3]`, RGB.
        attention: float `[T, H, W]`, which sums to 1; time step t is of the frames from
            `t T' / T` to `(t + 1) T' / T`.
    """

    frames: np.ndarray
    attention: np.ndarray

    @cached_property
    def steps(self) -> list[float]:
        """The share of each time step."""
        return [float(share) for share in self.attention.sum(axis=(1, 2))]

    @property
    def shares(self) -> list[float]:
        """For each frame of a strip the share of its time step."""
        return [self.steps[step] for step in self._strip_steps]

    @property
    def _strip_steps(self) -> list[int]:
        """For each frame of a strip the number of its time step."""
        length = len(self.frames)
        return [at * len(self.attention) // length for at in spread(length, NUM_FRAMES)]

    def shade(self) -> str:
        """A picture as wide as a strip that darkens what was left out, as a data URI.

        Darkness is `DARKEST (1 - a / max a)`.
        """
        _, height, width = self.attention.shape
        light = self.attention / max(float(self.attention.max()), 1e-12)
        dark = (255 * DARKEST * (1 - light)).astype(np.uint8)
        size = (SHADE_SCALE * width, SHADE_SCALE * height)
        alpha = Image.new("L", (NUM_FRAMES * size[0], size[1]))
        for place, step in enumerate(self._strip_steps):
            drawn = Image.fromarray(dark[step]).resize(size, Image.Resampling.BILINEAR)
            alpha.paste(drawn, (place * size[0], 0))
        shade = Image.merge("LA", (Image.new("L", alpha.size), alpha))
        buffer = io.BytesIO()
        shade.save(buffer, "WEBP", quality=40, method=3)
        return _data_uri("webp", buffer)


SeenOf = Callable[[str], Seen]


# ---- the strips of a page -----------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """One clip; `strip` is its place in `Previews.strips`, None if it has none for `problem`.

    `shade` and `shares` are those of `Seen`, where the readout attends.
    """

    clip_id: str
    row: int
    strip: int | None
    problem: str = ""
    shade: str = ""
    shares: Sequence[float] = ()


class Previews:
    """Renders the previews that are asked for, each clip at most once, up to a total size.

    Args:
        clip_ids: of all rows.
        frames_of: see `FramesOf`; None: there are no previews.
        seen_of: what the model saw of a clip, for those that are shown large; None: it does not
            attend to parts, and they are shown as the others are.
        size_px: the longer side of a frame, at most.
        max_bytes: of all strips as they stand in the page; what exceeds it stays without a strip.
    """

    def __init__(
        self,
        clip_ids: Sequence[str],
        frames_of: FramesOf | None,
        *,
        seen_of: SeenOf | None = None,
        size_px: int = 160,
        max_bytes: int = 8_000_000,
    ) -> None:
        self._clip_ids = clip_ids
        self._frames_of = frames_of
        self._seen_of = seen_of
        self._size_px = size_px
        self._max_bytes = max_bytes
        self._known: dict[int, Preview] = {}
        self._num_bytes = 0
        self.num_frames = NUM_FRAMES
        self.strips: list[Strip] = []

    @property
    def full(self) -> bool:
        """Whether the next clip would stay without a strip."""
        return self._frames_of is None or self._num_bytes >= self._max_bytes

    @property
    def attends(self) -> bool:
        """Whether large previews show what the model took."""
        return self._seen_of is not None

    @property
    def shades(self) -> dict[int, str]:
        """The shades of strips that have one, by the strip's number."""
        known = self._known.values()
        return {one.strip: one.shade for one in known if one.strip is not None and one.shade}

    def of(self, row: int) -> Preview:
        """The preview of a row; one that can't be read carries the reason."""
        if row not in self._known:
            self._known[row] = self._render(row, self._strip_of_clip)
        return self._known[row]

    def large(self, row: int) -> Preview:
        """As `of`, with what the readout took, where it attends; to be asked for before `of`."""
        if row not in self._known and self._seen_of is not None:
            self._known[row] = self._render(row, self._strip_of_seen)
        return self.of(row)

    def strip_numbers(self) -> dict[str, int]:
        """Strip's number by clip, of the clips that have one."""
        known = self._known.values()
        return {one.clip_id: one.strip for one in known if one.strip is not None}

    def _render(self, row: int, draw: Callable[[int], Preview]) -> Preview:
        clip_id = self._clip_ids[row]
        if self._frames_of is None:
            return Preview(clip_id, row, None, "the videos are not at hand")
        if self.full:
            return Preview(clip_id, row, None, "left out to keep the page small")
        try:
            return draw(row)
        except UserError as error:
            return Preview(clip_id, row, None, str(error))
        except Exception as error:  # whatever a decoder makes of one video
            return Preview(clip_id, row, None, f"decoding failed: {tell_briefly(error)}")

    def _strip_of_clip(self, row: int) -> Preview:
        assert self._frames_of is not None
        clip_id = self._clip_ids[row]
        return Preview(clip_id, row, self._keep(self._frames_of(clip_id)))

    def _strip_of_seen(self, row: int) -> Preview:
        assert self._seen_of is not None
        clip_id = self._clip_ids[row]
        seen = self._seen_of(clip_id)
        shade = seen.shade()
        self._num_bytes += len(shade)
        return Preview(clip_id, row, self._keep(seen.frames), shade=shade, shares=seen.shares)

    def _keep(self, frames: np.ndarray) -> int:
        strip = make_strip(frames, self._size_px)
        self.strips.append(strip)
        self._num_bytes += len(strip.uri)
        return len(self.strips) - 1
