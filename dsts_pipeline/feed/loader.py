"""Rows of a store to batches of tensors, from memory where they fit, else read ahead of need."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed.batch import FeatureBatch

_PRELOAD_ROWS = 64


class FeatureFeed:
    """Serves batches of some rows of a store.

    Args:
        store: an open store.
        rows: the rows to serve (int64), all by default.
        preload_bytes: keep the maps in memory, in their storage type, if they take no more.
        read_ahead: batches being read in the background where they are not in memory; together
            with the batch in use they bound the memory taken.

    Raises:
        StoreError: damage met while preloading.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: np.ndarray | None = None,
        *,
        preload_bytes: int = 2 * 2**30,
        read_ahead: int = 2,
    ) -> None:
        if read_ahead < 1:
            raise ValueError(f"read_ahead is {read_ahead}, expected >= 1")
        self.store, self.read_ahead = store, read_ahead
        self.rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._slots = np.full(len(store), -1, dtype=np.int64)
        self._slots[self.rows] = np.arange(len(self.rows))
        self._maps: np.ndarray | None = None
        if len(self.rows) * store.sample_bytes <= preload_bytes:
            self._maps = self._preload()

    def _preload(self) -> np.ndarray:
        maps = np.empty((len(self.rows), *self.store.map_shape), dtype=self.store.dtype)
        for start in range(0, len(self.rows), _PRELOAD_ROWS):
            chosen = slice(start, start + _PRELOAD_ROWS)
            maps[chosen] = self.store.read(self.rows[chosen])
        return maps

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def preloaded(self) -> bool:
        """Whether the maps are in memory."""
        return self._maps is not None

    @property
    def labels(self) -> np.ndarray:
        """Class number of each of `rows`, int64."""
        return self.store.labels[self.rows]

    @property
    def groups(self) -> np.ndarray:
        """Clip id of each of `rows`, for the samplers."""
        return np.array(self.store.video_ids)[self.rows]

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
        maps = self.store.read(rows) if self._maps is None else self._maps[slots]
        return FeatureBatch(
            maps=torch.from_numpy(maps).to(torch.float32),
            labels=torch.from_numpy(self.store.labels[rows]),
            rows=torch.from_numpy(rows.copy()),
        )

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
