"""What a saved head answers on a feed: a run over all of its maps, in their order or out of it.

Enters: a head's folder and a feed of its store. Leaves: a `HeadResult`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.reader import Fold
from dsts_pipeline.feed import FeatureFeed, split_batches
from dsts_pipeline.head import DSTSHead, load_head
from dsts_pipeline.head.inspection import temporal_shares
from dsts_pipeline.metrics.predictions import HeadResult, average_views, softmax


def load_fitting_head(folder: Path, store: FeatureStore) -> tuple[nn.Module, dict[str, Any]]:
    """The head in `folder`, with what its file says of its making, held against `store`.

    Raises:
        CheckpointError: The head is damaged or was trained on another store, another fold, or with
            views joined that are separate here, or the other way round.
    """
    head, extra = load_head(folder)
    if extra["store"] != store.fingerprint:
        raise CheckpointError(
            f"{folder}: trained on store {extra['store']}, the features are those of "
            f"{store.fingerprint}; run `python cli.py train-head`"
        )
    num_joined = extra.get("joined_views", 1)
    if num_joined != store.num_joined:
        raise CheckpointError(
            f"{folder}: trained on {_name_maps(num_joined)}, and {_name_maps(store.num_joined)} "
            f"are read; set feed.views to {'joined' if num_joined > 1 else 'separate'}, or run "
            "`python cli.py train-head`"
        )
    trained = extra.get("fold")
    if trained != (store.fold and store.fold.describe()):
        of = f"for {Fold(**trained)}" if trained else "on the store's own splits"
        now = f"{store.fold}" if store.fold else "the store's own test split"
        raise CheckpointError(
            f"{folder}: trained {of}, and {now} is asked for, whose clips it may have learnt; set "
            "dataset.num_folds and dataset.fold as they were, or run `python cli.py train-head`"
        )
    return head, extra


def _name_maps(num_joined: int) -> str:
    return f"joined maps of {num_joined} views" if num_joined > 1 else "separate views"


def score_head(
    folder: Path, feed: FeatureFeed, how: EvaluateSettings, *, seed: int = 0
) -> HeadResult:
    """Run the head in `folder` over all rows of `feed`; the views of a clip give one answer.

    Args:
        how: Its `batch_size` and `temporal_need` count.
        seed: Of the order in which the steps of a clip are shuffled.

    Raises:
        CheckpointError: The head is damaged or was trained on another store.
    """
    head, extra = load_fitting_head(folder, feed.store)
    layers = list(head.dsts_layers()) if isinstance(head, DSTSHead) else []
    routed = isinstance(head, DSTSHead) and head.routes
    found = _run(head, routed, feed, how, seed)
    average = partial(average_views, feed.groups.tolist(), feed.labels)
    without = found.get("without_time")
    shares = [share.tolist() for share in map(temporal_shares, layers) if share is not None]
    firsts = np.sort(np.unique(feed.groups, return_index=True)[1])  # each clip's first view
    return HeadResult(
        title=extra["title"],
        predictions=average(softmax(found["logits"]), found.get("neurons")),
        num_parameters=sum(parameter.numel() for parameter in head.parameters()),
        num_neurons=layers[0].num_neurons if routed else None,
        temporal_share=shares or None,
        features=found["pooled"][firsts] if routed else None,
        without_time=None if without is None else average(softmax(without)).probabilities,
    )


@torch.inference_mode()
def _run(
    head: nn.Module, routed: bool, feed: FeatureFeed, how: EvaluateSettings, seed: int
) -> dict[str, np.ndarray]:
    """What comes out, a row a row of the feed; of heads that don't route logits alone."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    seed = derive_seed(seed, "temporal_need")
    for batch in feed.batches(split_batches(feed.rows, how.batch_size)):
        if not routed:
            found["logits"].append(head(batch.maps))
            continue
        logits, records = head(batch.maps, with_records=True)
        found["logits"].append(logits)
        found["neurons"].append(torch.stack([record.choice for record in records], dim=1))
        found["pooled"].append(batch.maps.mean(dim=(2, 3, 4)))
        if how.temporal_need != "none" and feed.map_shape[1] > 1:
            disturbed = disturb_time(batch.maps, batch.rows.numpy(), how.temporal_need, seed)
            found["without_time"].append(head(disturbed))
    return {name: torch.cat(pieces).numpy() for name, pieces in found.items()}


# ---- maps without their order in time -----------------------------------------------------------
#
# What a head can still tell then, it did not need time for. The average over time and space stays
# as it was, so a head that pools first answers exactly as before.


def disturb_time(
    maps: Tensor, rows: np.ndarray, how: Literal["shuffle", "average"], seed: int
) -> Tensor:
    """Take the order of the time steps away.

    Args:
        maps: `[B, C, T, H, W]`.
        rows: number of each map in its store; each is shuffled by a draw of its own, so that
            the result does not depend on the size of batches.
        how: "shuffle" puts the steps of each clip in a random order, which keeps every frame as
            the head knows it; "average" puts their mean in place of each, which also takes away
            what changes, and is further from what the head was trained on.
        seed: of the shuffling.
    """
    if how == "average":
        return maps.mean(dim=2, keepdim=True).expand_as(maps).contiguous()
    steps = maps.shape[2]
    orders = np.stack([np.random.default_rng([seed, int(r)]).permutation(steps) for r in rows])
    batch = np.arange(len(rows))[:, None]
    return maps.movedim(2, 1)[batch, orders].movedim(1, 2).contiguous()
