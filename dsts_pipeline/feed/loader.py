"""Rows of a store to batches of tensors, from memory where they fit, else read ahead of need.

B batch, C channels, T H W time and space of the map.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.reader import BufferPool
from dsts_pipeline.feature_store.stored_types import STORED_DTYPES, StoredMaps

# ---- a batch, and what serves batches ------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class FeatureBatch:
    """Maps of some clips with their classes.

    Args:
        maps: float32 `[B, C, T, H, W]`; where a backbone trains, too, what it is fed in their
            place: frames uint8 `[B, T, H, W, 3]`.
        labels: class numbers, int64 `[B]`.
        rows: row numbers in the store, int64 `[B]`, on the CPU.

    Raises:
        ValueError: the shapes or types do not fit together.
    """

    maps: Tensor
    labels: Tensor
    rows: Tensor

    def __post_init__(self) -> None:
        size = len(self.rows)
        if self.maps.ndim != 5 or len(self.maps) != size or self.labels.shape != (size,):
            raise ValueError(f"shapes do not fit: {self!r}, expected [B, C, T, H, W], [B], [B]")
        is_map = self.maps.is_floating_point() or self.maps.dtype == torch.uint8
        if self.labels.dtype != torch.int64 or not is_map:
            raise ValueError(f"types do not fit: {self!r}, expected float maps and int64 labels")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        maps, labels, rows = (tuple(part.shape) for part in (self.maps, self.labels, self.rows))
        return f"FeatureBatch(maps={self.maps.dtype} {maps}, labels={labels}, rows={rows})"

    def to(self, device: torch.device | str) -> FeatureBatch:
        """The same batch with maps and labels on `device`; pinned maps go in the background."""
        background = self.maps.is_pinned()
        maps = self.maps.to(device, non_blocking=background)
        return FeatureBatch(maps, self.labels.to(device), self.rows)


class ServesBatches(Protocol):
    """Gives the batches of some rows, one after the other."""

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]: ...


class ClipFeed(ServesBatches, Protocol):
    """The clips of a split with their classes, as `FeatureFeed` serves them.

    Attributes:
        rows: Row numbers, int64.
        labels, groups, shards: Class, clip id and shard of each of `rows`.
    """

    @property
    def rows(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def groups(self) -> np.ndarray: ...
    @property
    def shards(self) -> np.ndarray: ...
    def name_of(self, row: int) -> str: ...
    def pairs(
        self, order: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[FeatureBatch, FeatureBatch]]: ...


# ---- maps in memory, which processes may share ---------------------------------------------------

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
        self._type = store.stored_type
        self._shape = (len(rows), *store.map_shape)
        self._maps = torch.empty(0, dtype=torch.uint8)
        num_bytes = int(np.prod(self._shape)) * STORED_DTYPES[self._type].itemsize
        scale_shape = (len(rows), store.map_shape[0]) if self._type == "int8" else (0, 0)
        if shared:
            _require_room(num_bytes)
        self._maps = torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))
        self._scales = torch.empty(scale_shape)
        if shared:
            self._maps = self._maps.share_memory_()
            self._scales = self._scales.share_memory_()
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
            self._maps = self._maps.share_memory_()
            self._scales = self._scales.share_memory_()
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


# ---- the feed ------------------------------------------------------------------------------------

FLOAT32 = np.dtype(np.float32)


class FeatureFeed:
    """Serves batches of some rows of a store. Can be used after a fork and sent to a process.

    Memory, beside preloaded maps: `read_ahead + 2` batches in float32 (those read ahead, the one
    in use, the one to come), one batch in the storage type unless that is float32, and per
    reading thread of the store 2 MiB (or one map) of compressed bytes: see `bound_bytes`.

    Args:
        store: an open store.
        rows: the rows to serve (int64), all by default.
        preload_bytes: keep the maps in memory, in their storage type, if they take no more.
        read_ahead: batches being read in the background where they are not in memory.
        shared: preload into memory that processes share from the beginning. Otherwise it is
            moved there when the feed is first sent to another process.
        pin: page-locked batches, which a GPU fetches faster; by default where there is one.

    Raises:
        StoreError: damage met while preloading.
        SettingsError: shared memory has no room.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: np.ndarray | None = None,
        *,
        preload_bytes: int = 2 * 2**30,
        read_ahead: int = 2,
        shared: bool = False,
        pin: bool | None = None,
    ) -> None:
        if read_ahead < 1:
            raise ValueError(f"read_ahead is {read_ahead}, expected >= 1")
        self.store = store
        self.read_ahead = read_ahead
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._slots = np.full(len(store), -1, dtype=np.int64)
        self._slots[self.rows] = np.arange(len(self.rows))
        self._buffers = BufferPool()
        self._stored_buffers = BufferPool(num_spare=1)
        self._preloaded: PreloadedMaps | None = None
        if len(self.rows) * store.sample_bytes <= preload_bytes:
            self._preloaded = PreloadedMaps(store, self.rows, shared=shared)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def preloaded(self) -> bool:
        """Whether the maps are in memory."""
        return self._preloaded is not None

    @property
    def labels(self) -> np.ndarray:
        """Class number of each of `rows`, int64."""
        return self.store.labels[self.rows]

    @property
    def groups(self) -> np.ndarray:
        """Clip id of each of `rows`, for the samplers."""
        return np.array(self.store.video_ids)[self.rows]

    def name_of(self, row: int) -> str:
        """The clip id of a row of the store."""
        return str(self.store.video_ids[row])

    @property
    def shards(self) -> np.ndarray:
        """Number of the shard that each of `rows` lies in, for the samplers, int64."""
        samples_per_shard = int(self.store.manifest["array"]["samples_per_shard"])
        return self.store.positions[self.rows] // samples_per_shard

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set, seen or not."""
        return len(self.store.class_names)

    @property
    def map_shape(self) -> tuple[int, ...]:
        """`(C, T, H, W)`."""
        return self.store.map_shape

    def bound_bytes(self, batch_size: int, num_threads: int = 1) -> int:
        """Largest memory that batches of this size take, without preloaded maps."""
        values = batch_size * int(np.prod(self.map_shape))
        stored = 0 if self.store.stored_type == "float32" else batch_size * self.store.sample_bytes
        scratch = num_threads * max(2 * 2**20, self.store.sample_bytes)
        return (self.read_ahead + 2) * values * FLOAT32.itemsize + stored + scratch

    def batch(self, rows: np.ndarray) -> FeatureBatch:
        """The batch of the given rows (numbers in the store), in that order.

        Raises:
            ValueError: a row is not one of this feed's.
            StoreError: a shard is missing or damaged.
        """
        rows = np.asarray(rows, dtype=np.int64)
        inside = (rows >= 0) & (rows < len(self.store))
        slots = self._slots[np.where(inside, rows, 0)]
        if strange := rows[~inside | (slots < 0)].tolist():
            raise ValueError(f"row {strange[0]} is not among this feed's {len(self)} rows")
        return FeatureBatch(
            maps=self._maps(rows, slots),
            labels=torch.from_numpy(self.store.labels[rows]),
            rows=torch.from_numpy(rows.copy()),
        )

    def _maps(self, rows: np.ndarray, slots: np.ndarray) -> Tensor:
        """float32 `[B, C, T, H, W]` in memory of an earlier batch that is no longer in use.

        The conversion writes twice the bytes that were read; into fresh memory it takes seven
        times as long, for the sake of the kernel's mapping and clearing its pages.
        """
        shape = (len(rows), *self.map_shape)
        if self.pin:  # torch keeps such memory for reuse itself.
            maps = torch.empty(shape, dtype=torch.float32, pin_memory=True)
        else:
            maps = torch.from_numpy(self._buffers.empty(shape, FLOAT32))
        is_float32 = self.store.stored_type == "float32"
        dtype = self.store.stored_dtype
        stored = maps.numpy() if is_float32 else self._stored_buffers.empty(shape, dtype)
        if self._preloaded is None:
            read = self.store.read_stored(rows, stored)
        else:
            whole = self._preloaded.stored
            np.take(whole.maps, slots, axis=0, out=stored, mode="clip")
            scales = None if whole.scales is None else whole.scales[slots]
            read = StoredMaps(stored, scales, whole.stored_type)
        if not is_float32:
            _convert(read, maps)
        return maps

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]:
        """The batches of `order` (see `samplers.epoch_batches`), one after the other."""
        if self.preloaded:
            yield from map(self.batch, order)
            return
        yield from self._read_ahead(order)

    def pairs(
        self, order: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[FeatureBatch, FeatureBatch]]:
        """Training and validation batches of `samplers.udl_pairs`."""
        flat = self.batches(rows for pair in order for rows in pair)
        yield from zip(flat, flat, strict=True)

    def _read_ahead(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]:
        waiting: deque[Future[FeatureBatch]] = deque()
        with ThreadPoolExecutor(max_workers=1) as pool:
            try:
                for rows in order:
                    waiting.append(pool.submit(self.batch, rows))
                    if len(waiting) > self.read_ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def _convert(stored: StoredMaps, maps: Tensor) -> None:
    """Stored maps as float32, exactly what `StoredMaps.to_float` gives, but faster."""
    if stored.stored_type == "bfloat16":
        maps.copy_(torch.from_numpy(stored.maps).view(torch.bfloat16))
        return
    maps.copy_(torch.from_numpy(stored.maps))
    if stored.scales is not None:
        maps.mul_(torch.from_numpy(stored.scales)[:, :, None, None, None])


# ---- for a `DataLoader` --------------------------------------------------------------------------


class BatchDataset(Dataset[FeatureBatch]):
    """One item per batch of `batches`; give it to a `DataLoader` with `batch_size=None`.

    Workers may be forked, spawned or come from a fork server; preloaded maps are shared with
    them. `FeatureFeed.batches` reads ahead in threads and copies less: use this where a trainer
    insists.

    Args:
        feed: serves the batches.
        batches: rows of each batch, int64, as `samplers.epoch_batches` gives them.
    """

    def __init__(self, feed: FeatureFeed, batches: Sequence[np.ndarray]) -> None:
        self.feed = feed
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> FeatureBatch:
        return self.feed.batch(self.batches[number])
