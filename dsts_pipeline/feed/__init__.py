"""Batches from a feature store: seeded orders, disjoint UDL pairs, preloading."""

from __future__ import annotations

from dsts_pipeline.feed.batch import FeatureBatch
from dsts_pipeline.feed.cursor import SamplerCursor
from dsts_pipeline.feed.dataset import BatchDataset
from dsts_pipeline.feed.epochs import EpochSampler
from dsts_pipeline.feed.loader import FeatureFeed
from dsts_pipeline.feed.orders import balanced_draws, sequential_order, shard_order
from dsts_pipeline.feed.protocol import ClipFeed, ServesBatches
from dsts_pipeline.feed.samplers import (
    epoch_batches,
    epoch_order,
    evaluation_rows,
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
