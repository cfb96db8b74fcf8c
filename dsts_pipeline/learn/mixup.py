"""Mixup on feature maps: every clip of a batch is blended with another one, and so is its label.

`x = s x_i + (1 - s) x_j`, loss `s CE(., y_i) + (1 - s) CE(., y_j)`: cross-entropy with the soft
label. s is drawn from Beta(alpha, alpha) per batch, and the larger of s and 1 - s is taken, so
that a clip keeps the greater part of itself. Source: Zhang et al. 2018. Deviation: not in the
paper. Choice: under UDL the training batch is mixed, the validation batch is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.feed import FeatureBatch


@dataclass(frozen=True, repr=False)
class MixedBatch(FeatureBatch):
    """A batch of blended maps: `labels` weigh `share`, `partners [B]` the rest."""

    partners: Tensor
    share: float


def mix_batch(batch: FeatureBatch, *, alpha: float, seed: int) -> MixedBatch:
    """Blend the maps of `batch` among themselves.

    Args:
        alpha: > 0; the larger, the more even the blend.
        seed: Decides share and partners.
    """
    generator = np.random.default_rng(seed)
    share = float(generator.beta(alpha, alpha))
    share = max(share, 1.0 - share)
    partner = torch.from_numpy(generator.permutation(len(batch))).to(batch.maps.device)
    maps = share * batch.maps + (1.0 - share) * batch.maps[partner]
    return MixedBatch(maps, batch.labels, batch.rows, batch.labels[partner], share)


def split_batch(batch: FeatureBatch, size: int) -> list[FeatureBatch]:
    """Consecutive parts of at most `size` clips."""
    columns = zip(
        batch.maps.split(size), batch.labels.split(size), batch.rows.split(size), strict=True
    )
    if not isinstance(batch, MixedBatch):
        return [FeatureBatch(*column) for column in columns]
    partners = batch.partners.split(size)
    return [
        MixedBatch(*column, partner, batch.share)
        for column, partner in zip(columns, partners, strict=True)
    ]
