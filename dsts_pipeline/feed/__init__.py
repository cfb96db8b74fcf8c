"""Batches from a feature store: seeded orders, disjoint UDL pairs, preloading."""

from __future__ import annotations

from dsts_pipeline.feed.batch import FeatureBatch
from dsts_pipeline.feed.loader import FeatureFeed
from dsts_pipeline.feed.samplers import epoch_batches, epoch_order, split_batches, udl_pairs

__all__ = [
    "FeatureBatch",
    "FeatureFeed",
    "epoch_batches",
    "epoch_order",
    "split_batches",
    "udl_pairs",
]
