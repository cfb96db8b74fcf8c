"""Neuron gallery: moving previews of the clips that a neuron was chosen for.

Enters: predictions with routing, and a function that yields a clip's frames.
Leaves: per layer and neuron a few previews; each clip's frames are stored once, side by side in
one WebP strip (a data URI), which the page moves with CSS: it can be paused and needs no script.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.metrics.predictions import Predictions

NUM_FRAMES = 16
WEBP_QUALITY = 62

FramesOf = Callable[[str], np.ndarray]  # clip id -> uint8 [T, H, W, 3], RGB


@dataclass(frozen=True)
class Preview:
    """One clip in the gallery; `strip` is its place in `Gallery.strips`, None if unreadable."""

    clip_id: str
    row: int
    strip: int | None
    problem: str = ""


@dataclass(frozen=True)
class Gallery:
    """`layers[l][n]` are the previews of one neuron; `strips` the pictures they share."""

    layers: tuple[tuple[tuple[Preview, ...], ...], ...]
    strips: tuple[str, ...]
    num_frames: int = NUM_FRAMES


def build_gallery(
    predictions: Predictions,
    num_neurons: int,
    frames_of: FramesOf,
    *,
    num_clips: int = 4,
    size_px: int = 72,
) -> Gallery:
    """Previews of `num_clips` clips per neuron and layer.

    A clip that `frames_of` raises a `UserError` for is shown with the reason, not left out.
    """
    assert predictions.neurons is not None
    strips: list[str] = []
    known: dict[int, Preview] = {}

    def preview(row: int) -> Preview:
        if row not in known:
            clip_id = predictions.clip_ids[row]
            try:
                strips.append(strip_uri(frames_of(clip_id), size_px))
                known[row] = Preview(clip_id, row, len(strips) - 1)
            except UserError as error:
                known[row] = Preview(clip_id, row, None, str(error))
        return known[row]

    layers = tuple(
        tuple(
            tuple(preview(row) for row in typical_rows(predictions, column == neuron, num_clips))
            for neuron in range(num_neurons)
        )
        for column in predictions.neurons.T
    )
    return Gallery(layers, tuple(strips))


def typical_rows(predictions: Predictions, chosen: np.ndarray, limit: int) -> Sequence[int]:
    """Rows of the surest clip of each class that a neuron serves, its most frequent class first.

    When the classes are fewer than `limit`, their second surest clips follow, and so on.
    """
    rows = np.flatnonzero(chosen)
    sureness = predictions.probabilities[rows].max(axis=1)
    order = rows[np.argsort(-sureness, kind="stable")]
    labels = predictions.labels[order]
    counts = np.bincount(labels, minlength=predictions.num_classes)
    turn = np.zeros(len(order), np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(counts[label])
    return [int(row) for row in order[np.lexsort((labels, -counts[labels], turn))][:limit]]


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
        left, top = (size_px - frame.width) // 2, (size_px - frame.height) // 2
        strip.paste(frame, (place * size_px + left, top))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
