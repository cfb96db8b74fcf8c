"""Views of one video as one long map: the segments of a clip, one after another along time.

Enters: an open store whose clips have views of S segments, V-JEPA 2's `num_segments`. Leaves: the
same store with a row, of a map `[C, S T, H, W]`, where it had S; augmentations of a training clip,
samples and crops of a test clip stay rows of their own. Nothing is copied on the disk.

View v of a clip is of segment v mod S and belongs to row v // S of the clip. A row of which a
segment failed to decode is no row: it is a failure, once, with the segment's reason.

In memory a joined map is `[C S, T, H, W]` until it is handed on: the same values in the same order,
so that int8 keeps a scale for each channel of each segment, and no value is rounded again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store.manifest import count_clips
from dsts_pipeline.feature_store.reader import BufferPool, FeatureStore, MapSource

JOINED_BYTES = 16 * 2**20  # of separate maps in memory while they are joined, or one joined map


def join_views(store: FeatureStore) -> FeatureStore:
    """`store` with the segments of every clip joined.

    Of imported maps, of which nothing says what their views are, all views of a clip are joined.
    Folds are dealt afterwards.

    Raises:
        DataError: Clips have one segment, different numbers of views, or views of several classes.
        ValueError: They are joined already, or folds are dealt.
    """
    if store.num_joined > 1 or store.fold is not None:
        raise ValueError(f"{store.location}: expected a store as `open_store` gives it")
    places = _find_places(store)
    num_joined = len(places[0].members)
    row_of = np.full(len(store.planned["ids"]), -1, dtype=np.int64)
    row_of[store.positions] = np.arange(len(store))
    rows = np.array([row_of[place.members] for place in places])  # [places, S]
    is_whole = (rows >= 0).all(axis=1)
    members = np.array([place.members for place in places])
    kept = rows[is_whole]
    firsts = kept[:, 0]
    if len(odd := np.flatnonzero((store.labels[kept] != store.labels[firsts][:, None]).any(1))):
        raise DataError(
            f"{store.location}: views of clip {store.video_ids[firsts[odd[0]]]} have different "
            "classes, so they are no one map; set feed.views to separate"
        )
    joined = copy.copy(store)
    joined.__dict__.pop("group_numbers", None)  # of other rows
    joined.num_joined = num_joined
    channels, steps, *area = store.map_shape
    joined.map_shape = (channels, num_joined * steps, *area)
    joined.stored_shape = (channels * num_joined, steps, *area)
    joined.positions = members[is_whole, 0]
    joined.views = np.array([place.view for place in places], dtype=np.int64)[is_whole]
    joined.labels = store.labels[firsts]
    joined.splits = store.splits[firsts]
    joined.video_ids = tuple(store.video_ids[row] for row in firsts)
    if store.groups is not None:
        joined.groups = tuple(store.groups[row] for row in firsts)
    if store.frames is not None:
        joined.frames = store.frames[kept].reshape(len(kept), -1)
    joined.source = JoinedSource(store.source, members, store.map_shape)
    failures = _join_failures(store, [places[n] for n in np.flatnonzero(~is_whole)])
    planned = Counter(store.planned["splits"][place.members[0]] for place in places)
    counts = {"failures": failures, "counts": count_clips(planned, failures)}
    joined.manifest = store.manifest | counts
    return joined


def join_maps(maps: np.ndarray, num_joined: int) -> np.ndarray:
    """Maps `[n, C, T, H, W]` of clips' views, in their order, as `[n / S, C, S T, H, W]`."""
    num_maps, channels, steps, *area = maps.shape
    separate = maps.reshape(num_maps // num_joined, num_joined, channels, steps, *area)
    return separate.swapaxes(1, 2).reshape(-1, channels, num_joined * steps, *area)


def count_joinable(made_of: Mapping[str, Any]) -> int:
    """S, the segments of a clip, by what a store's manifest says it is made of; 1: one."""
    return int(made_of.get("views", {}).get("segments", 1))


def follow_head(feed: FeedSettings, head_record: Mapping[str, Any]) -> FeedSettings:
    """`feed` with views joined or not, as for the head whose file says `head_record`."""
    joined = head_record.get("joined_views", 1) > 1
    return feed.model_copy(update={"views": "joined" if joined else "separate"})


class _Place(NamedTuple):
    """A joined map: its view's number, and the planned places of its segments, in their order."""

    view: int
    members: list[int]


def _find_places(store: FeatureStore) -> list[_Place]:
    """All joined maps in the planned order, whether their segments exist or not."""
    views_of: dict[str, dict[int, int]] = {}
    for position, (clip, view) in enumerate(
        zip(store.planned["ids"], store.planned["views"], strict=True)
    ):
        views_of.setdefault(clip, {})[view] = position
    made_of = store.manifest["made_of"]
    num_joined = count_joinable(made_of)
    if num_joined == 1 and "import" in made_of:
        num_joined = len(next(iter(views_of.values())))
        for clip, found in views_of.items():
            if len(found) != num_joined:
                raise DataError(
                    f"{store.location}: feed.views is joined, and clip {clip} has {len(found)} "
                    f"views, others {num_joined}; joined maps need as many views of every clip: "
                    "import them again, or set feed.views to separate"
                )
    if num_joined == 1:
        raise DataError(
            f"{store.location}: feed.views is joined, and clips have one view in time; extract "
            "with backbone.views.segments above 1, or set feed.views to separate"
        )
    places = []
    for clip, found in views_of.items():
        if len(found) % num_joined or sorted(found) != list(range(len(found))):
            raise DataError(
                f"{store.location}: views of clip {clip} are numbered {sorted(found)}, expected "
                f"from 0 on in groups of {num_joined}; set feed.views to separate"
            )
        for view in range(len(found) // num_joined):
            numbers = range(view * num_joined, (view + 1) * num_joined)
            places.append(_Place(view, [found[number] for number in numbers]))
    return sorted(places, key=lambda place: place.members[0])


def _join_failures(store: FeatureStore, lost: Sequence[_Place]) -> list[dict[str, Any]]:
    """An entry for each map that can't be joined, as a manifest lists them."""
    failures = {failure["position"]: failure for failure in store.manifest["failures"]}
    joined = []
    for place in lost:
        segment, failure = next(
            (number, failures[position])
            for number, position in enumerate(place.members)
            if position in failures
        )
        where = f"segment {segment + 1} of {len(place.members)}"
        changed = {"position": place.members[0], "reason": f"{where}: {failure['reason']}"}
        joined.append(failure | changed)
    return joined


class JoinedSource:
    """A `MapSource` of joined maps, over the one of their segments.

    Args:
        source: Of the segments' maps.
        members: int64 `[n, S]`, positions of the segments of each joined map; its own position is
            that of its first one.
        map_shape: `(C, T, H, W)` of a segment's map.
    """

    def __init__(self, source: MapSource, members: np.ndarray, map_shape: tuple[int, ...]) -> None:
        self.source = source
        self._members = np.full((int(members.max()) + 1, members.shape[1]), -1, dtype=np.int64)
        self._members[members[:, 0]] = members
        self._map_shape = map_shape
        self._buffers = BufferPool()

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """As in `MapSource`, maps `[n, C S, T, H, W]` with scales `[n, C S]`."""
        num_joined = self._members.shape[1]
        channels = self._map_shape[0]
        step = max(1, JOINED_BYTES // max(1, out[:1].nbytes))
        for start in range(0, len(positions), step):
            members = self._members[positions[start : start + step]]
            shape = (members.size, *self._map_shape)
            separate = self._buffers.empty(shape, out.dtype)
            own = None if scales is None else np.empty(shape[:2], dtype=np.float32)
            self.source.read_into(members.reshape(-1), separate, own)
            into = len(members), channels, num_joined, -1
            out_of = len(members), num_joined, channels, -1
            part = slice(start, start + len(members))
            out[part].reshape(into)[...] = separate.reshape(out_of).swapaxes(1, 2)
            if scales is not None and own is not None:
                scales[part].reshape(into)[...] = own.reshape(out_of).swapaxes(1, 2)
