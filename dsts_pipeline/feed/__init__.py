"""Batches from a feature store: seeded orders, disjoint UDL pairs, preloading."""

from __future__ import annotations

from dsts_pipeline.feed.epochs import EpochSampler, SamplerCursor
from dsts_pipeline.feed.loader import (
    BatchDataset,
    ClipFeed,
    FeatureBatch,
    FeatureFeed,
    ServesBatches,
)
from dsts_pipeline.feed.samplers import (
    balanced_draws,
    epoch_batches,
    epoch_order,
    evaluation_rows,
    sequential_order,
    shard_order,
    split_batches,
    udl_pairs,
)

__all__ = [
    "BatchDataset",
    "ClipFeed",
    "EpochSampler",
    "FeatureBatch",
    "FeatureFeed",
    "SamplerCursor",
    "ServesBatches",
    "balanced_draws",
    "epoch_batches",
    "epoch_order",
    "evaluation_rows",
    "sequential_order",
    "shard_order",
    "split_batches",
    "udl_pairs",
]
