"""Rows of a store to batches of float32 on the device that wants them, made ahead of need.

Enters: an open store, rows, a device. Leaves: batches, in the order asked for. Maps stay in the
storage type as long as they can: in memory, on the way to a GPU, and on it. A GPU's batches are
copied and converted on a stream of their own, beside the step that uses an earlier one.

B batch, C channels, T H W time and space of the map.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.joining import JOINED_BYTES
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
        """The same batch with maps and labels on `device`; nothing is copied where they are."""
        return FeatureBatch(self.maps.to(device), self.labels.to(device), self.rows)


class ServesBatches(Protocol):
    """Gives the batches of some rows, one after the other."""

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]: ...


class ClipFeed(ServesBatches, Protocol):
    """The clips of a split with their classes, as `FeatureFeed` serves them.

    Attributes:
        rows: Row numbers, int64.
        labels, groups, shards: Class, clip id and shard of each of `rows`.
        origins: Number of each row's group (player, source video); None: none is told.
    """

    @property
    def rows(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def groups(self) -> np.ndarray: ...
    @property
    def origins(self) -> np.ndarray | None: ...
    @property
    def shards(self) -> np.ndarray: ...
    def name_of(self, row: int) -> str: ...
    def pairs(
        self, order: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[FeatureBatch, FeatureBatch]]: ...


# ---- stored maps as tensors, on any device -------------------------------------------------------

TENSOR_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
}


def as_tensors(stored: StoredMaps) -> tuple[Tensor, Tensor | None]:
    """The same memory as tensors: maps of `TENSOR_DTYPES`, scales float32 `[n, C]` or None."""
    maps = torch.from_numpy(stored.maps).view(TENSOR_DTYPES[stored.stored_type])
    return maps, None if stored.scales is None else torch.from_numpy(stored.scales)


def to_float32(maps: Tensor, scales: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Stored maps as numbers, on the device where they are: the values of `StoredMaps.to_float`.

    Args:
        maps: `[n, C, T, H, W]` of `TENSOR_DTYPES`.
        scales: float32 `[n, C]` of int8 maps, else None.
        out: float32 memory to fill; by default fresh, or `maps` if they are float32.
    """
    values = maps.to(torch.float32) if out is None else out.copy_(maps)
    return values if scales is None else values.mul_(scales[:, :, None, None, None])


_PIECE_VALUES = 2**15 - 1


def fill_float32(out: Tensor, maps: Tensor, scales: Tensor | None) -> None:
    """`to_float32` into memory of the CPU, by the calling thread alone.

    A thread that reads ahead is to take one core from the training, not all. torch shares out
    what has 2**15 values or more, and can't be told not to for one thread; hence the pieces.

    Args:
        out: float32 `[k, T, H, W]`, k channels of one map or of several.
        maps: the same of `TENSOR_DTYPES`. scales: float32 `[k]` of int8, else None.
    """
    step = len(maps)
    if torch.get_num_threads() > 1:
        step = max(1, _PIECE_VALUES // maps[0].numel())
    factors = repeat(None) if scales is None else scales[:, None, None, None].split(step)
    for piece, stored, factor in zip(out.split(step), maps.split(step), factors, strict=False):
        piece.copy_(stored)
        if factor is not None:
            piece.mul_(factor)


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
        self._shape = (len(rows), *store.stored_shape)
        self._maps = torch.empty(0, dtype=torch.uint8)
        num_bytes = int(np.prod(self._shape)) * STORED_DTYPES[self._type].itemsize
        scale_shape = self._shape[:2] if self._type == "int8" else (0, 0)
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
        """All of them, each of the store's `stored_shape`."""
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


# ---- maps on a device ----------------------------------------------------------------------------


class DeviceMaps:
    """The maps of `rows` of a store on a device, in the storage type.

    Args:
        read: gives the maps of a slice of the rows.
        num_rows: how many there are. stored_shape, stored_type: as of the store.

    Raises:
        StoreError: damage met while reading.
        SettingsError: the device has no room for them.
    """

    def __init__(
        self,
        read: Callable[[slice], StoredMaps],
        num_rows: int,
        stored_shape: tuple[int, ...],
        stored_type: str,
        device: torch.device,
    ) -> None:
        shape = (num_rows, *stored_shape)
        scale_shape = shape[:2] if stored_type == "int8" else (0, 0)
        try:
            self._maps = torch.empty(shape, dtype=TENSOR_DTYPES[stored_type], device=device)
            self._scales = torch.empty(scale_shape, device=device)
        except torch.OutOfMemoryError as error:
            raise SettingsError(
                f"{device}: no room for the maps of {num_rows} clips ({error}); set "
                "feed.device_preload_bytes lower"
            ) from None
        for start in range(0, num_rows, _ROWS_A_READ):
            part = slice(start, min(start + _ROWS_A_READ, num_rows))
            maps, scales = as_tensors(read(part))
            self._maps[part] = maps  # Waits until it is there: the memory may be used again.
            if scales is not None:
                self._scales[part] = scales

    def gather(self, slots: Tensor) -> Tensor:
        """float32 `[B, *stored_shape]` of the rows at `slots`, int64 `[B]` on the device."""
        scales = self._scales.index_select(0, slots) if len(self._scales) else None
        return to_float32(self._maps.index_select(0, slots), scales)


# ---- the feed ------------------------------------------------------------------------------------

FLOAT32 = np.dtype(np.float32)
# Bytes of a map in float32: a batch of smaller ones takes no longer than the turns of two threads.
_WORTH_A_READER = 2**17
Made = tuple[FeatureBatch, "torch.cuda.Event | None"]


class FeatureFeed:
    """Serves batches of some rows of a store. Can be used after a fork and sent to a process.

    Memory, beside preloaded maps: `read_ahead + 2` batches in float32 (those read ahead, the one
    in use, the one to come), per reader one batch in the storage type unless that is float32, and
    per reading thread of the store 2 MiB (or one map) of compressed bytes: see `bound_bytes`. On a
    GPU the batches in float32 are there, and here are page-locked ones in the storage type.

    Args:
        store: an open store.
        rows: the rows to serve (int64), all by default.
        device: where maps and labels of batches are to be.
        preload_bytes: keep the maps in memory, in their storage type, if they take no more.
        device_preload_bytes: keep them on the device instead, if it is a GPU and they take no more.
            Each process that uses the feed keeps its own.
        read_ahead: batches being made in the background.
        num_readers: threads that make them, each a whole batch.
        shared: preload into memory that processes share from the beginning. Otherwise it is
            moved there when the feed is first sent to another process.

    Raises:
        StoreError: damage met while preloading.
        SettingsError: shared memory or the device has no room.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: np.ndarray | None = None,
        *,
        device: torch.device | str = "cpu",
        preload_bytes: int = 2 * 2**30,
        device_preload_bytes: int = 2 * 2**30,
        read_ahead: int = 2,
        num_readers: int = 2,
        shared: bool = False,
    ) -> None:
        for name, number in (("read_ahead", read_ahead), ("num_readers", num_readers)):
            if number < 1:
                raise ValueError(f"{name} is {number}, expected >= 1")
        self.store = store
        self.device = torch.device(device)
        self.read_ahead = read_ahead
        self.num_readers = num_readers
        self.rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._slots = np.full(len(store), -1, dtype=np.int64)
        self._slots[self.rows] = np.arange(len(self.rows))
        self._buffers = BufferPool()
        self._stored_buffers = BufferPool(num_spare=num_readers)
        self._preloaded: PreloadedMaps | None = None
        self._on_device: DeviceMaps | None = None
        self._stream: torch.cuda.Stream | None = None
        num_bytes = len(self.rows) * store.sample_bytes
        self._fits_device = self.device.type == "cuda" and num_bytes <= device_preload_bytes
        if num_bytes <= preload_bytes and (shared or not self._fits_device):
            self._preloaded = PreloadedMaps(store, self.rows, shared=shared)
        if not shared:
            self._prepare_device()

    @classmethod
    def from_settings(
        cls,
        store: FeatureStore,
        rows: np.ndarray,
        reading: FeedSettings,
        *,
        device: torch.device | str = "cpu",
        shared: bool = False,
    ) -> FeatureFeed:
        """The feed that `reading` states."""
        return cls(
            store,
            rows,
            device=device,
            preload_bytes=reading.preload_bytes,
            device_preload_bytes=reading.device_preload_bytes,
            shared=shared,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has to prepare the device itself."""
        return self.__dict__ | {"_on_device": None, "_stream": None}

    @property
    def preloaded(self) -> bool:
        """Whether the maps are in memory, here or on the device."""
        return self._preloaded is not None or self._fits_device

    @property
    def labels(self) -> np.ndarray:
        """Class number of each of `rows`, int64."""
        return self.store.labels[self.rows]

    @property
    def groups(self) -> np.ndarray:
        """Clip id of each of `rows`, for the samplers."""
        return np.array(self.store.video_ids)[self.rows]

    @property
    def origins(self) -> np.ndarray | None:
        """The store's `group_numbers` of each of `rows`, int64; None where it tells no groups."""
        numbers = self.store.group_numbers
        return None if numbers is None else numbers[self.rows]

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
        """Largest memory that batches of this size take, without preloaded maps.

        Args:
            num_threads: of the store, with which it reads one batch.
        """
        values = batch_size * self._map_bytes
        stored = 0 if self.store.stored_type == "float32" else batch_size * self.store.sample_bytes
        scratch = (num_threads + self.num_readers - 1) * max(2 * 2**20, self.store.sample_bytes)
        if self.store.num_joined > 1:
            scratch += self.num_readers * max(JOINED_BYTES, self.store.sample_bytes)
        return (self.read_ahead + 2) * values + self.num_readers * stored + scratch

    @property
    def _serves_at_once(self) -> bool:
        """Whether the caller's own thread makes batches: of small maps that are in memory."""
        is_here = self._preloaded is not None and self.device.type != "cuda"
        return is_here and self._map_bytes < _WORTH_A_READER

    @property
    def _map_bytes(self) -> int:
        """Of a map in float32."""
        return int(np.prod(self.map_shape)) * FLOAT32.itemsize

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
        is_gpu = self.device.type == "cuda"
        maps = self._sent_maps(rows, slots) if is_gpu else self._host_maps(rows, slots)
        return FeatureBatch(
            maps=maps.view(len(rows), *self.map_shape),
            labels=self._send(torch.from_numpy(self.store.labels[rows])),
            rows=torch.from_numpy(rows.copy()),
        )

    def _host_maps(self, rows: np.ndarray, slots: np.ndarray) -> Tensor:
        """float32 `[B, *stored_shape]` in memory of an earlier batch that is no longer in use.

        The conversion writes twice the bytes that were read; into fresh memory it takes seven
        times as long, for the sake of the kernel's mapping and clearing its pages.
        """
        shape = (len(rows), *self.store.stored_shape)
        maps = torch.from_numpy(self._buffers.empty(shape, FLOAT32))
        if self.store.stored_type == "float32":
            self._read(rows, slots, maps.numpy())
        elif self._serves_at_once:
            buffer = self._stored_buffers.empty(shape, self.store.stored_dtype)
            to_float32(*as_tensors(self._read(rows, slots, buffer)), out=maps)
        elif self._preloaded is not None:
            stored, scales = as_tensors(self._preloaded.stored)
            for place, slot in enumerate(slots.tolist()):  # without a copy of the batch between
                fill_float32(maps[place], stored[slot], None if scales is None else scales[slot])
        else:
            buffer = self._stored_buffers.empty(shape, self.store.stored_dtype)
            stored, scales = as_tensors(self._read(rows, slots, buffer))
            of_channels = None if scales is None else scales.flatten()
            fill_float32(maps.flatten(0, 1), stored.flatten(0, 1), of_channels)
        return maps

    def _sent_maps(self, rows: np.ndarray, slots: np.ndarray) -> Tensor:
        """float32 `[B, *stored_shape]` on the device, made there out of stored maps."""
        if self._on_device is not None:
            return self._on_device.gather(self._send(torch.from_numpy(slots)))
        shape = (len(rows), *self.store.stored_shape)
        dtype = TENSOR_DTYPES[self.store.stored_type]
        pinned = torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        memory = pinned.view(torch.uint8).numpy().view(self.store.stored_dtype)
        found = self._read(rows, slots, memory).scales
        scales = None if found is None else self._send(torch.from_numpy(found))
        return to_float32(self._send(pinned), scales)

    def _read(self, rows: np.ndarray, slots: np.ndarray, out: np.ndarray) -> StoredMaps:
        """Maps of `rows` in the storage type into `out`, from memory or the store."""
        if self._preloaded is None:
            return self.store.read_stored(rows, out)
        whole = self._preloaded.stored
        np.take(whole.maps, slots, axis=0, out=out, mode="clip")
        scales = None if whole.scales is None else whole.scales[slots]
        return StoredMaps(out, scales, whole.stored_type)

    def _send(self, tensor: Tensor) -> Tensor:
        """It on the device, without waiting: from page-locked memory, which torch keeps so long."""
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def batches(self, order: Iterable[np.ndarray]) -> Iterator[FeatureBatch]:
        """The batches of `order` (see `samplers.epoch_batches`), one after the other.

        They are made ahead, `read_ahead` of them, by `num_readers` threads; small ones that are in
        memory are made when they are asked for.
        """
        self._prepare_device()
        if self._serves_at_once:
            yield from map(self.batch, order)
            return
        waiting: deque[Future[Made]] = deque()
        with ThreadPoolExecutor(self.num_readers, "dsts-feed") as pool:
            try:
                for rows in order:
                    waiting.append(pool.submit(self._make, rows))
                    if len(waiting) > self.read_ahead:
                        yield _hand_over(*waiting.popleft().result())
                while waiting:
                    yield _hand_over(*waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def pairs(
        self, order: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[FeatureBatch, FeatureBatch]]:
        """Training and validation batches of `samplers.udl_pairs`."""
        flat = self.batches(rows for pair in order for rows in pair)
        yield from zip(flat, flat, strict=True)

    def _prepare_device(self) -> None:
        """Once in each process: a GPU's stream for batches, and the maps that are kept there."""
        if self.device.type != "cuda":
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        if self._fits_device and self._on_device is None:
            self._on_device = DeviceMaps(
                self._read_slots,
                len(self),
                self.store.stored_shape,
                self.store.stored_type,
                self.device,
            )

    def _read_slots(self, part: slice) -> StoredMaps:
        """Stored maps of some of `rows`."""
        rows = self.rows[part]
        shape = (len(rows), *self.store.stored_shape)
        buffer = self._stored_buffers.empty(shape, self.store.stored_dtype)
        return self._read(rows, self._slots[rows], buffer)

    def _make(self, rows: np.ndarray) -> Made:
        """In a reader: a batch; a GPU's is ready once its event has come."""
        if self._stream is None:
            return self.batch(rows), None
        with torch.cuda.stream(self._stream):
            batch = self.batch(rows)
            return batch, self._stream.record_event()


def _hand_over(batch: FeatureBatch, ready: torch.cuda.Event | None) -> FeatureBatch:
    """Let the stream that will use the batch wait for it; the caller itself doesn't wait.

    The batch's memory belongs to the feed's stream: it is used again only when the work that the
    user's stream has at the time of its release is done.
    """
    if ready is not None:
        stream = torch.cuda.current_stream(batch.maps.device)
        stream.wait_event(ready)
        batch.maps.record_stream(stream)
        batch.labels.record_stream(stream)
    return batch


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
