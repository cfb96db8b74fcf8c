"""A feed over a small store in memory, whose classes a head can learn."""

from __future__ import annotations

import numpy as np

from dsts_pipeline.feature_store.stored_types import StoredMaps
from dsts_pipeline.feed import FeatureFeed


class MemoryStore:
    """What `FeatureFeed` needs of a store."""

    def __init__(self, maps, labels, num_classes):
        self.maps, self.labels = maps, labels.astype(np.int64)
        self.map_shape = self.stored_shape = maps.shape[1:]
        self.num_joined = 1
        self.stored_dtype = maps.dtype
        self.stored_type = maps.dtype.name
        self.sample_bytes = int(np.prod(self.map_shape)) * maps.dtype.itemsize
        self.video_ids = tuple(f"clip{row}" for row in range(len(maps)))
        self.class_names = tuple(f"class{k}" for k in range(num_classes))
        self.groups = self.group_numbers = self.fold = None

    def __len__(self):
        return len(self.maps)

    def read_stored(self, rows, out):
        np.take(self.maps, rows, axis=0, out=out)
        return StoredMaps(out, None, self.stored_type)


def ordered_feed(num_clips=64, channels=6, seed=0):
    """Four classes: which of two channels fires first in time, which of two lies left in space.

    Averaged over time and space all classes look the same.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(num_clips) % 4
    maps = 0.1 * generator.standard_normal((num_clips, channels, 4, 3, 4))
    for clip, label in enumerate(labels):
        t, w = generator.integers(3), generator.integers(3)
        first, left = label % 2, label // 2
        maps[clip, first, t] += 2.0
        maps[clip, 1 - first, t + 1] += 2.0
        maps[clip, 2 + left, :, :, w] += 2.0
        maps[clip, 3 - left, :, :, w + 1] += 2.0
    return FeatureFeed(MemoryStore(maps.astype(np.float32), labels, 4))
