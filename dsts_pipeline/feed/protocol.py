"""What a training asks of whatever serves its batches: stored maps, or videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from dsts_pipeline.feed.batch import FeatureBatch


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
