"""What is in a store's maps: checksums that fail, NaN, Inf, maps of zeros, statistics, drift.

Enters: an open store, a folder or an HDF5 file. Leaves: a `ValueReport`. Maps stream by in batches
of bounded size; what is kept grows with the number of clips as their list of names does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store.checks.drift import ClipMeans, Drift
from dsts_pipeline.feature_store.checks.statistics import (
    ChannelStatistics,
    MapFigures,
    describe_maps,
)
from dsts_pipeline.feature_store.reader import FeatureStore

# Float64 bytes of one batch: what the checks hold of a store at a time, a few times over.
BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class StrangeMap:
    """One map that is not as it should be.

    Attributes:
        clip, view: whose map. row: its number in the store. shard: where it lies.
        problem: what is wrong, a phrase.
    """

    clip: str
    view: int
    row: int
    shard: int
    problem: str

    def __str__(self) -> str:
        view = f" (view {self.view})" if self.view else ""
        return f"clip {self.clip}{view} {self.problem}"


@dataclass
class ValueReport:
    """What the maps of a store say.

    Attributes:
        damaged: maps that can't be read or are not finite. zero: maps of nothing but zeros.
        statistics: per channel. drift: the test between shards.
    """

    statistics: ChannelStatistics
    damaged: list[StrangeMap] = field(default_factory=list)
    zero: list[StrangeMap] = field(default_factory=list)
    drift: Drift | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, all maps and channels included."""
        return {
            "damaged_maps": [vars(strange) for strange in self.damaged],
            "zero_maps": [vars(strange) for strange in self.zero],
            "channels": self.statistics.to_json(),
            "drift": None if self.drift is None else self.drift.to_json(),
        }


def check_values(
    store: FeatureStore, *, on_maps: Callable[[int], None] = lambda count: None
) -> ValueReport:
    """Read every map of a store once.

    Args:
        on_maps: called with the number of maps of each batch done.
    """
    report = ValueReport(ChannelStatistics(store.map_shape[0]))
    clip_means = ClipMeans(len(store), store.map_shape[0])
    batch_size = max(1, BATCH_BYTES // (8 * int(np.prod(store.map_shape))))
    for shard, rows in rows_by_shard(store):
        kept, means = [], []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            sound, figures = _check_batch(store, shard, batch, report)
            on_maps(len(batch))
            if figures is None:
                continue
            report.statistics.add(figures)
            kept.append(sound[figures.finite])
            means.append(figures.means[figures.finite])
        if not kept:
            continue
        chosen = np.concatenate(kept)
        clip_means.add_shard(
            shard,
            [store.video_ids[row] for row in chosen],
            store.labels[chosen].tolist(),
            store.views[chosen].tolist(),
            np.concatenate(means),
        )
    report.drift = clip_means.test()
    return report


def rows_by_shard(store: FeatureStore) -> Iterator[tuple[int, np.ndarray]]:
    """Shard numbers with the rows (int64) that lie in each; an HDF5 file has the same parts."""
    shards = store.positions // int(store.manifest["array"]["samples_per_shard"])
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    for rows in np.split(np.arange(len(store)), starts[1:]):
        if len(rows):
            yield int(shards[rows[0]]), rows


def _check_batch(
    store: FeatureStore, shard: int, rows: np.ndarray, report: ValueReport
) -> tuple[np.ndarray, MapFigures | None]:
    """Rows that can be read, and the figures of their maps; the report gets what is strange."""

    def name(row: int, problem: str) -> StrangeMap:
        clip, view = store.video_ids[row], int(store.views[row])
        return StrangeMap(clip, view, int(row), shard, problem)

    try:
        maps = store.read(rows)
    except StoreError:  # One by one, so that each bad map is named and the others are looked at.
        sound = []
        for row in rows.tolist():
            try:
                store.read([row])
                sound.append(row)
            except StoreError as error:
                report.damaged.append(name(row, f"has no sound map: {_shorten(error, store)}"))
        rows = np.array(sound, dtype=np.int64)
        if not sound:
            return rows, None
        maps = store.read(rows)
    figures = describe_maps(maps)
    for place in np.flatnonzero(~figures.finite):
        num_nan, num_inf = int(figures.num_nan[place]), int(figures.num_inf[place])
        problem = f"has {num_nan} NaN and {num_inf} Inf in its map"
        report.damaged.append(name(int(rows[place]), problem))
    for place in np.flatnonzero(figures.all_zero):
        report.zero.append(name(int(rows[place]), "has a map of zeros"))
    return rows, figures


def _shorten(error: StoreError, store: FeatureStore) -> str:
    """The part of a message that says what is wrong, without the store's name and the cure."""
    told = str(error).removeprefix(f"{store.location}: ")
    return told.rpartition("; ")[0] or told
