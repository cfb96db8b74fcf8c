"""Maps out of a store's shards: by index and positioned reads, straight into the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.manifest import REPAIR
from dsts_pipeline.feature_store.shards import (
    ShardDamage,
    format_nameplate,
    read_chunks,
    read_index,
)
from dsts_pipeline.feature_store.store_files import StoreFiles


class ShardSource:
    """A `MapSource` over the shard files of a store (docs/store-format.md).

    Args:
        files: where they lie. manifest: the store's.
        verify_checksums: verify the crc32c of every map that is read.
        num_threads: threads that read one batch.
    """

    def __init__(
        self,
        files: StoreFiles,
        manifest: Mapping[str, Any],
        *,
        verify_checksums: bool = True,
        num_threads: int = 1,
    ) -> None:
        self.files, self._fingerprint = files, manifest["fingerprint"]
        self._samples_per_shard = int(manifest["array"]["samples_per_shard"])
        self._indices: dict[int, np.ndarray] = {}

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """See `MapSource`."""
        shards, slots = np.divmod(positions, self._samples_per_shard)
        order = np.lexsort((slots, shards))
        starts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        for chosen in np.split(order, starts[1:]):
            if len(chosen):
                self._read_shard(int(shards[chosen[0]]), slots[chosen], [out[i] for i in chosen])

    def _read_shard(self, shard: int, slots: np.ndarray, targets: list[np.ndarray]) -> None:
        path = f"{self.files.location}/{layout.name_shard(shard)}"
        try:
            if shard not in self._indices:
                nameplate = format_nameplate(self._fingerprint, shard)
                self._indices[shard] = read_index(path, self._samples_per_shard, nameplate)
            read_chunks(path, self._indices[shard], slots.tolist(), targets)
        except ShardDamage as damage:
            raise StoreError(
                f"{self.files.location}: shard {shard} ({layout.name_shard(shard)}) {damage}; "
                f"{REPAIR}"
            ) from None
