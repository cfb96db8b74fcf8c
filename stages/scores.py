"""What a saved head answers on a feed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed, split_batches
from dsts_pipeline.head import DSTSHead, load_head
from dsts_pipeline.head.inspection import temporal_shares
from dsts_pipeline.metrics import HeadResult, average_views, softmax


def load_fitting_head(folder: Path, store: FeatureStore) -> tuple[nn.Module, dict[str, Any]]:
    """The head in `folder`, with what its file says of its making.

    Raises:
        CheckpointError: The head is damaged or was trained on another store.
    """
    head, extra = load_head(folder)
    if extra["store"] != store.fingerprint:
        raise CheckpointError(
            f"{folder}: trained on store {extra['store']}, the features are those of "
            f"{store.fingerprint}; run `python cli.py train-head`"
        )
    return head, extra


@torch.inference_mode()
def score_head(folder: Path, feed: FeatureFeed, *, batch_size: int) -> HeadResult:
    """Run the head in `folder` over all rows of `feed`; the views of a clip give one answer.

    Raises:
        CheckpointError: The head is damaged or was trained on another store.
    """
    head, extra = load_fitting_head(folder, feed.store)
    layers = list(head.dsts_layers()) if isinstance(head, DSTSHead) else []
    routed = bool(layers) and all(layer.options.synapse for layer in layers)
    logits, neurons = [], []
    for batch in feed.batches(split_batches(feed.rows, batch_size)):
        logits.append(head(batch.maps).numpy())
        if routed and isinstance(head, DSTSHead):
            neurons.append(head.routing(batch.maps).numpy())
    shares = [share.tolist() for share in map(temporal_shares, layers) if share is not None]
    return HeadResult(
        title=extra["title"],
        predictions=average_views(
            feed.groups.tolist(),
            feed.labels,
            softmax(np.concatenate(logits)),
            np.concatenate(neurons) if routed else None,
        ),
        num_parameters=sum(parameter.numel() for parameter in head.parameters()),
        num_neurons=layers[0].num_neurons if routed else None,
        temporal_share=shares or None,
    )
