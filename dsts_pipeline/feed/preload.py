"""Stored maps of some rows, read once and kept in memory, which processes may share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.stored_maps import STORED_DTYPES, StoredMaps

SHARED_MEMORY = "/dev/shm"
_ROWS_A_READ = 64


class PreloadedMaps:
    """The maps of `rows` of a store in the storage type: int8 takes a quarter of float32.

    Sent to another process (a worker, a rank) it moves into shared memory first, where it is
    not there yet, so that all of them use one copy.

    Args:
        store: an open store. rows: int64 `[n]`.
        shared: keep them in shared memory from the beginning.

    Raises:
        StoreError: damage met while reading.
        SettingsError: shared memory has no room for them.
    """

    def __init__(self, store: FeatureStore, rows: np.ndarray, *, shared: bool = False) -> None:
        self._type, self._shape = store.stored_type, (len(rows), *store.map_shape)
        self._maps = torch.empty(0, dtype=torch.uint8)
        num_bytes = int(np.prod(self._shape)) * STORED_DTYPES[self._type].itemsize
        scale_shape = (len(rows), store.map_shape[0]) if self._type == "int8" else (0, 0)
        if shared:
            _require_room(num_bytes)
        self._maps = torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))
        self._scales = torch.empty(scale_shape)
        if shared:
            self._maps, self._scales = self._maps.share_memory_(), self._scales.share_memory_()
        whole = self.stored
        for start in range(0, len(rows), _ROWS_A_READ):
            part = slice(start, start + _ROWS_A_READ)
            read = store.read_stored(rows[part], whole.maps[part])
            if whole.scales is not None and read.scales is not None:
                whole.scales[part] = read.scales

    @property
    def stored(self) -> StoredMaps:
        """All of them, `[n, C, T, H, W]`."""
        maps = self._maps.numpy().view(STORED_DTYPES[self._type]).reshape(self._shape)
        return StoredMaps(maps, self._scales.numpy() if len(self._scales) else None, self._type)

    @property
    def is_shared(self) -> bool:
        """Whether other processes can use the same memory."""
        return self._maps.is_shared()

    def __getstate__(self) -> dict[str, Any]:
        if not self.is_shared:
            _require_room(self._maps.nbytes)
            self._maps, self._scales = self._maps.share_memory_(), self._scales.share_memory_()
        return self.__dict__


def _require_room(num_bytes: int) -> None:
    """Writing beyond what the kernel grants ends the process by a signal: ask before."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return  # Another system, other rules.
    free = status.f_bavail * status.f_frsize
    if num_bytes > free:
        raise SettingsError(
            f"{SHARED_MEMORY}: {free / 2**20:.0f} MiB free, but {num_bytes / 2**20:.0f} MiB of "
            "maps are to be shared between processes; enlarge it (docker: --shm-size) or set "
            "feed.preload_bytes lower"
        )
