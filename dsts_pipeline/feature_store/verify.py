"""`verify`: everything that can be checked about a store, files first, then the maps in them.

Enters: a directory, a URL or an HDF5 file. Leaves: a `Verdict`, which says whether the store is
sound, which shards are not, and what looks strange without being damage: maps of zeros, shards
that differ from the others. Maps stream by in batches of bounded size; what is kept grows with the
number of clips as their list of names does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.files import (
    FileProblem,
    LocalFiles,
    check_files,
    check_sidecars,
    check_totals,
    list_files,
    list_some,
)
from dsts_pipeline.feature_store.hdf5 import HDF5_SUFFIXES, check_datasets
from dsts_pipeline.feature_store.manifest import load_manifest
from dsts_pipeline.feature_store.opening import open_store
from dsts_pipeline.feature_store.reader import FeatureStore
from dsts_pipeline.feature_store.shards import ShardSource
from dsts_pipeline.feature_store.statistics import (
    ChannelStatistics,
    ClipMeans,
    Drift,
    MapFigures,
    describe_maps,
)

# Float64 bytes of one batch: what the checks hold of a store at a time, a few times over.
_BATCH_BYTES = 8 * 2**20


def check_store(
    location: str | Path, feed: FeedSettings = FeedSettings(), *, fast: bool
) -> Verdict:
    """Check a store.

    Args:
        feed: how many threads read, and where shards of a remote store are kept. Checksums are
            verified whatever it says.
        fast: presence, sizes and the small files' digests only.

    Raises:
        StoreError: there is no store, it is unfinished, of another format, or its manifest is
            damaged: nothing can be compared then.
    """
    path = Path(location)
    if "://" in str(location) or (path.is_file() and path.suffix in HDF5_SUFFIXES):
        # Opening checks a file's digests, or presence and sizes behind the URL, and raises.
        store = open_store(
            location,
            num_threads=feed.num_read_threads,
            cache_dir=feed.cache_dir,
            cache_bytes=feed.cache_bytes,
            stall_seconds=feed.stall_seconds,
        )
        return _check_open(store, fast)
    manifest = load_manifest(path)
    files = LocalFiles(path)
    listed = list_files(manifest)
    verdict = Verdict(
        location=str(location),
        fingerprint=manifest["fingerprint"],
        imported="import" in manifest["made_of"],
        fast=fast,
        num_files=len(listed),
        num_bytes=sum(entry["bytes"] for _, _, entry in listed),
        num_maps=manifest["counts"]["stored"],
        notes=check_sidecars(path, manifest),
    )
    if (problem := check_totals(path, manifest)) is not None:
        verdict.problems.append(problem)
    with track("verify digests" if not fast else "verify", len(listed), "files") as progress:
        for _, found in check_files(files, manifest, digests=not fast):
            if found:
                verdict.problems.append(found)
            progress.advance(note=_tell(verdict))
    if not fast and all(problem.shard is not None for problem in verdict.problems):
        table = json.loads(files.read_bytes(layout.CLIPS_NAME))
        source = ShardSource(files, manifest, num_threads=feed.num_read_threads)
        _check_maps(verdict, FeatureStore(path, manifest, table, source))
    return verdict


def _check_open(store: FeatureStore, fast: bool) -> Verdict:
    verdict = Verdict(
        location=store.location,
        fingerprint=store.fingerprint,
        imported="import" in store.manifest["made_of"],
        fast=fast,
        num_files=len(list_files(store.manifest)),
        num_bytes=len(store) * store.sample_bytes,
        num_maps=len(store),
    )
    if store.path.is_file():
        verdict.num_files = 1
        verdict.num_bytes = store.path.stat().st_size
        verdict.problems += check_datasets(store.path)
    if not fast:
        _check_maps(verdict, store)
    return verdict


def _check_maps(verdict: Verdict, store: FeatureStore) -> None:
    with track("verify maps", len(store), "maps") as progress:
        verdict.values = check_values(
            store, on_maps=lambda count: progress.advance(count, note=_tell(verdict))
        )


def _tell(verdict: Verdict) -> str:
    return f"{len(verdict.problems)} damaged" if verdict.problems else ""


# ---- what was found ----------------------------------------------------------------------------


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        location, fingerprint: the store's.
        imported: whether its maps were made elsewhere, so that no stage can make them again.
        fast: whether only presence, sizes and the small files' digests were looked at.
        num_files, num_bytes, num_maps: how much was looked at.
        problems: files that are not as recorded. values: None where no map was looked at.
        notes: what a reader need not care about.
    """

    location: str
    fingerprint: str
    imported: bool
    fast: bool
    num_files: int
    num_bytes: int
    num_maps: int
    problems: list[FileProblem] = field(default_factory=list)
    values: ValueReport | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def damage(self) -> list[str]:
        """A sentence per damaged file and map."""
        maps = self.values.damaged if self.values else []
        return [*map(str, self.problems), *map(str, maps)]

    @property
    def warnings(self) -> list[str]:
        """What looks strange and may be right: maps of zeros, drift, sidecars."""
        found = list(self.notes)
        if self.values and self.values.zero:
            found.append(
                f"{len(self.values.zero)} maps are all zeros: {list_some(self.values.zero)}"
            )
        if self.values and self.values.drift:
            found += map(str, self.values.drift.flagged)
        return found

    @property
    def damaged_shards(self) -> list[int]:
        """Numbers of the shards that have to be written again."""
        maps = self.values.damaged if self.values else []
        in_files = {problem.shard for problem in self.problems if problem.shard is not None}
        return sorted(in_files | {strange.shard for strange in maps})

    def require_sound(self, cure: str, *, strict: bool) -> None:
        """Raise a StoreError that names the damage (and with `strict` the warnings)."""
        found = self.damage + (self.warnings if strict else [])
        if found:
            raise StoreError(f"{self.location}: {list_some(found)}; {cure}")

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        sizes = {name: getattr(self, name) for name in ("num_files", "num_bytes", "num_maps")}
        return sizes | {
            "location": self.location,
            "fingerprint": self.fingerprint,
            "mode": "fast" if self.fast else "full",
            "sound": not self.damage,
            "damage": [vars(problem) for problem in self.problems],
            "damaged_shards": self.damaged_shards,
            "warnings": self.warnings,
            "values": None if self.values is None else self.values.to_json(),
        }


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


# ---- the maps: checksums that fail, NaN, Inf, zeros, statistics, drift -------------------------


def check_values(
    store: FeatureStore, *, on_maps: Callable[[int], None] = lambda count: None
) -> ValueReport:
    """Read every map of a store once.

    Args:
        on_maps: called with the number of maps of each batch done.
    """
    report = ValueReport(ChannelStatistics(store.map_shape[0]))
    clip_means = ClipMeans(len(store), store.map_shape[0])
    batch_size = max(1, _BATCH_BYTES // (8 * int(np.prod(store.map_shape))))
    for shard, rows in _rows_by_shard(store):
        kept = []
        means = []
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


def _rows_by_shard(store: FeatureStore) -> Iterator[tuple[int, np.ndarray]]:
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
        return StrangeMap(store.video_ids[row], int(store.views[row]), int(row), shard, problem)

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
        problem = f"has {figures.num_nan[place]} NaN and {figures.num_inf[place]} Inf in its map"
        report.damaged.append(name(int(rows[place]), problem))
    for place in np.flatnonzero(figures.all_zero):
        report.zero.append(name(int(rows[place]), "has a map of zeros"))
    return rows, figures


def _shorten(error: StoreError, store: FeatureStore) -> str:
    """The part of a message that says what is wrong, without the store's name and the cure."""
    told = str(error).removeprefix(f"{store.location}: ")
    return told.rpartition("; ")[0] or told
