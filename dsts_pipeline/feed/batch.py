"""What a training step is fed.

B batch, C channels, T H W time and space of the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


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


# ---- What a training asks of whatever serves its batches: stored maps, or videos. ---------------


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
