"""A feed as a torch `Dataset` of whole batches, for those whose trainer wants a `DataLoader`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from dsts_pipeline.feed.batch import FeatureBatch
from dsts_pipeline.feed.loader import FeatureFeed


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
        self.feed, self.batches = feed, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> FeatureBatch:
        return self.feed.batch(self.batches[number])
