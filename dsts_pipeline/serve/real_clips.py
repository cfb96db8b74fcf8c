"""Some real clips, as a head or a backbone sees them, to compare and time models on.

Enters: a store, or a clip index and a bundle. Leaves: maps float32 [n, C, T, H, W], or frames uint8
[n, T, H, W, 3].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.frames.decode_job import answer, decode_clip
from dsts_pipeline.extract.frames.views import ViewPlan
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.serve.bundle_parts import Bundle


def read_some(store: FeatureStore, split: str, count: int) -> Tensor:
    """Up to `count` maps of `split`, evenly spread over it.

    Raises:
        StoreError: The store has no row of that split, or a shard is missing or damaged.
    """
    rows = store.rows_of_split(split)
    maps = store.read(rows[_spread(len(rows), count)])
    return torch.from_numpy(maps.astype(np.float32))


def decode_some(bundle: Bundle, index: ClipIndex, split: str, count: int) -> Tensor:
    """The first view of up to `count` clips of `split`, evenly spread over it.

    A clip that cannot be decoded is left out.

    Raises:
        DataError: Fewer than two clips could be decoded.
    """
    plan = ViewPlan(index, bundle.backbone, bundle.views, bundle.decoder, bundle.decoder_fallback)
    firsts = [
        position
        for position, row in enumerate(plan.rows)
        if row.view == 0 and plan.clip_of(position).split == split
    ]
    jobs = plan.jobs([firsts[number] for number in _spread(len(firsts), count)])
    decoded = [answer(decode_clip, job) for job in jobs]
    frames = [found.frames for found in decoded if found.frames is not None]
    if len(frames) < 2:
        reason = next((found.reason for found in decoded if found.frames is None), "there are none")
        raise DataError(
            f"{len(frames)} clips of {split} could be decoded ({reason}), expected at least 2; run "
            "`python cli.py prepare`, or export the head alone (without --whole)"
        )
    return torch.from_numpy(np.concatenate(frames))


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(int))
