"""A saved head, held against the store that its maps come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.head import load_head


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
