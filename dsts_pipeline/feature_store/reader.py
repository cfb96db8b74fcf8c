"""Reading a finished store: row numbers in, maps out, every checksum verified.

Rows are the maps that exist: clips that failed to decode keep their position in the files but
are no rows. Nothing missing is ever read as zeros: it is an error that names the shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.manifest import REPAIR, load_manifest
from dsts_pipeline.feature_store.shards import (
    ShardDamage,
    format_nameplate,
    read_chunks,
    read_index,
)
from dsts_pipeline.feature_store.verify import require_sound


class FeatureStore:
    """A finished store, read only. Open it with `open_store`.

    Holds no open file, so it can be used after fork, sent to a spawned process, and shared by
    threads.

    Attributes:
        path: the store's directory.
        manifest: the whole manifest.
        labels: class number per row, int64 `[n]`.
        video_ids: clip id per row.
        views: view number per row, int64 `[n]`.
        splits: split name per row, `[n]`.
        positions: place of each row in the planned order, int64 `[n]`.
        class_names, attribute_names, attributes: see `StorePlan`.
        map_shape: `(C, T, H, W)`. dtype: the storage type.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], clip_table: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        array, samples = manifest["array"], clip_table["samples"]
        self.map_shape: tuple[int, ...] = tuple(array["shape"][1:])
        self.dtype = np.dtype(array["dtype"])
        failed = {failure["position"] for failure in manifest["failures"]}
        kept = [position for position in range(array["shape"][0]) if position not in failed]
        self.positions = np.array(kept, dtype=np.int64)
        self.labels = np.array([samples["labels"][position] for position in kept], dtype=np.int64)
        self.views = np.array([samples["views"][position] for position in kept], dtype=np.int64)
        self.splits = np.array([samples["splits"][position] for position in kept], dtype=str)
        self.video_ids: tuple[str, ...] = tuple(samples["ids"][position] for position in kept)
        classes = clip_table["classes"]
        self.class_names: tuple[str, ...] = tuple(classes["names"])
        self.attribute_names: tuple[str, ...] = tuple(classes["attribute_names"])
        self.attributes: tuple[tuple[str, ...], ...] = tuple(map(tuple, classes["attributes"]))
        self._samples_per_shard = int(array["samples_per_shard"])
        self._indices: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.map_shape))
        return f"FeatureStore({len(self)} maps of {shape} {self.dtype}, {self.path})"

    @property
    def fingerprint(self) -> str:
        """Name of all that decided this store's bytes."""
        return self.manifest["fingerprint"]

    @property
    def sample_bytes(self) -> int:
        """Bytes of one map in the storage type."""
        return int(np.prod(self.map_shape)) * self.dtype.itemsize

    def rows_of_split(self, split: str) -> np.ndarray:
        """Rows (int64) of one split, ascending.

        Raises:
            StoreError: the store has no row of that split.
        """
        rows = np.flatnonzero(self.splits == split)
        if len(rows) == 0:
            found = ", ".join(sorted(set(self.splits.tolist()))) or "none"
            raise StoreError(f"{self.path}: no map of split {split!r}; found: {found}")
        return rows

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Maps of the given rows, in the order given: `[n, C, T, H, W]` in the storage type.

        Raises:
            IndexError: a row number out of range.
            StoreError: a shard is missing or damaged; the message names it.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"{self.path}: rows {rows.min()} to {rows.max()}, have {len(self)}")
        maps = np.empty((len(rows), *self.map_shape), dtype=self.dtype)
        shards, slots = np.divmod(self.positions[rows], self._samples_per_shard)
        order = np.lexsort((slots, shards))
        starts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        for chosen in np.split(order, starts[1:]):
            if len(chosen):
                self._read_shard(int(shards[chosen[0]]), slots[chosen], [maps[i] for i in chosen])
        return maps

    def _read_shard(self, shard: int, slots: np.ndarray, targets: list[np.ndarray]) -> None:
        path = self.path / layout.name_shard(shard)
        try:
            if shard not in self._indices:
                nameplate = format_nameplate(self.fingerprint, shard)
                self._indices[shard] = read_index(path, self._samples_per_shard, nameplate)
            read_chunks(path, self._indices[shard], slots.tolist(), targets)
        except ShardDamage as damage:
            raise StoreError(
                f"{self.path}: shard {shard} ({layout.name_shard(shard)}) {damage}; {REPAIR}"
            ) from None

    def verify(self) -> None:
        """Read every file and compare its digest with the manifest's.

        Raises:
            StoreError: naming what is damaged and what to run.
        """
        require_sound(self.path, load_manifest(self.path), digests=True)


def open_store(path: str | Path) -> FeatureStore:
    """Open a finished store: manifest, metadata, presence and size of every shard are checked.

    Raises:
        StoreError: no store, an unfinished or damaged one; the message says what to run.
    """
    path = Path(path)
    manifest = load_manifest(path)
    if manifest["array"]["codecs"] != list(layout.CODECS):
        raise StoreError(
            f"{path}: codecs are {manifest['array']['codecs']}, expected {list(layout.CODECS)}; "
            "use the release that wrote it"
        )
    require_sound(path, manifest, digests=False)
    return FeatureStore(path, manifest, read_json(path / layout.CLIPS_NAME))
