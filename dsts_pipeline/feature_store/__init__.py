"""Feature maps on disk: a content-addressed zarr v3 store that never reads missing data as zeros.

Write with `StorePlan` and `StoreWriter`, read with `open_store`. Format: docs/store-format.md.
"""

from __future__ import annotations

from dsts_pipeline.feature_store.files import find_damage
from dsts_pipeline.feature_store.joining import join_views
from dsts_pipeline.feature_store.opening import open_store
from dsts_pipeline.feature_store.plan import Sample, StorePlan, choose_samples_per_shard
from dsts_pipeline.feature_store.reader import FeatureStore
from dsts_pipeline.feature_store.writer import StoreWriter

__all__ = [
    "FeatureStore",
    "Sample",
    "StorePlan",
    "StoreWriter",
    "choose_samples_per_shard",
    "find_damage",
    "join_views",
    "open_store",
]
