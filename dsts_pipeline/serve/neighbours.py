"""The training clips that are nearest to a video: by cosine of pooled feature maps.

Enters: a feature store and the clip index that it was made from. Leaves: for a pooled map, clips
with their similarity, `cos(a, b) = a . b / (|a| |b|)` of maps less the mean of the training clips,
moving previews of them, and whether the video is farther from all of them than they are from each
other: then it likely shows none of their classes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.views import preview_request
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.report.previews import strip_uri
from dsts_pipeline.serve.predictor import Predictor

MAX_CLIPS = 5000
NUM_PREVIEW_FRAMES = 16
FARTHEST = 0.02  # share of training clips that are farther from all others than the threshold
MIN_JUDGED = 50  # clips below which that share is no more than one clip
_MAPS_A_READ = 64
_CLIPS_AT_ONCE = 512
_NUM_PREVIEWS_KEPT = 256


@dataclass(frozen=True)
class Neighbour:
    """A training clip, its class, and its similarity, -1 to 1."""

    clip_id: str
    label: int
    similarity: float


class Neighbours:
    """Finds them among at most `MAX_CLIPS` training clips, spread evenly over the split.

    Args:
        store: Whose first views of training clips are read, once.
        index: Where the clips' videos are.
        preview_px: Side of a preview.

    Attributes:
        threshold: A video whose nearest clip is less similar shows likely none of the classes: the
            `FARTHEST` quantile of the similarity of each training clip to its nearest other one, of
            another group where clips have groups. None where there are too few to say.
    """

    def __init__(self, store: FeatureStore, index: ClipIndex, *, preview_px: int = 96) -> None:
        rows = store.rows_of_split("train")
        rows = rows[store.views[rows] == 0]
        self.num_clips = len(rows)
        if len(rows) > MAX_CLIPS:
            rows = rows[np.linspace(0, len(rows) - 1, MAX_CLIPS).round().astype(int)]
        self._ids = [store.video_ids[row] for row in rows]
        self._labels = store.labels[rows]
        pooled = _pool(store, rows)
        self._mean = pooled.mean(axis=0)
        self._directions = _unit(pooled - self._mean)
        groups = store.groups
        origins = np.arange(len(rows))
        if groups is not None:
            # A clip without a group is of no other's origin.
            names = [groups[row] or f"\0{row}" for row in rows]
            origins = np.unique(names, return_inverse=True)[1].reshape(-1)
        self.threshold = _usual_similarity(self._directions, origins)
        self._index = index
        self._clips = {clip.id: clip for clip in index.clips}
        self._preview_px = preview_px
        self._previews: dict[str, str | None] = {}
        self._lock = threading.Lock()

    @property
    def num_compared(self) -> int:
        """Clips that are looked at; fewer than `num_clips` where there are many."""
        return len(self._ids)

    def find(self, pooled: np.ndarray, count: int = 5) -> list[Neighbour]:
        """The nearest clips of `pooled [C]`, the nearest first; ties in the store's order."""
        cosines = self._directions @ _unit(pooled[None] - self._mean)[0]
        order = np.argsort(-cosines, kind="stable")[:count]
        return [
            Neighbour(self._ids[row], int(self._labels[row]), float(cosines[row])) for row in order
        ]

    def is_far(self, found: Sequence[Neighbour]) -> bool | None:
        """Whether the nearest of `found` is farther than the threshold; None without one."""
        if self.threshold is None or not found:
            return None
        return found[0].similarity < self.threshold

    def previews(self, clip_ids: Sequence[str], predictor: Predictor) -> list[str | None]:
        """A strip of frames as data URI for each clip; None where the video can't be shown."""
        with self._lock:
            missing = [name for name in clip_ids if name not in self._previews]
        named = [name for name in missing if name in self._clips]
        requests = [
            preview_request(
                self._index,
                self._clips[name],
                NUM_PREVIEW_FRAMES,
                size_px=self._preview_px,
                decoder=predictor.bundle.decoder,
                fallback="pyav",
            )
            for name in named
        ]
        found: dict[str, str | None] = dict.fromkeys(missing)
        for name, frames in zip(named, predictor.preview(requests), strict=True):
            found[name] = None if frames is None else strip_uri(frames, self._preview_px)
        with self._lock:
            shown = [found.get(name, self._previews.get(name)) for name in clip_ids]
            if len(self._previews) + len(found) > _NUM_PREVIEWS_KEPT:
                self._previews.clear()
            self._previews |= found
        return shown


def _pool(store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """Means over time and space, float32 [n, C], a few maps in memory at a time."""
    pooled = np.empty((len(rows), store.map_shape[0]), np.float32)
    with track("Reading training features", len(rows), "maps") as progress:
        for start in range(0, len(rows), _MAPS_A_READ):
            part = rows[start : start + _MAPS_A_READ]
            maps = store.read(part).astype(np.float32)
            pooled[start : start + len(part)] = maps.mean(axis=(2, 3, 4))
            progress.advance(len(part))
    return pooled


def _usual_similarity(directions: np.ndarray, origins: np.ndarray) -> float | None:
    """The `FARTHEST` quantile of each clip's similarity to the nearest one of another origin."""
    if len(directions) < MIN_JUDGED:
        return None
    if len(np.unique(origins)) == 1:  # then there is no other: the nearest other clip
        origins = np.arange(len(directions))
    nearest = np.empty(len(directions), np.float32)
    for start in range(0, len(directions), _CLIPS_AT_ONCE):
        part = slice(start, start + _CLIPS_AT_ONCE)
        cosines = directions[part] @ directions.T
        cosines[origins[part, None] == origins] = -1.0
        nearest[part] = cosines.max(axis=1)
    return float(np.quantile(nearest, FARTHEST))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, C] of length one; those of length zero stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
