"""The classifier that belongs to the backbone whose maps are in the store, if there is one."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.extract.checkpoints.weights import find_classifier
from dsts_pipeline.feature_store import FeatureStore


def classifier_of(weights: str | Path, store: FeatureStore) -> tuple[Tensor, Tensor] | None:
    """Weight `[K, C]` and bias `[K]`; None where none fits, or another backbone made the maps.

    Args:
        weights: the backbone's weights: a file or an address.

    Raises:
        CheckpointError: The weights file of an extracted store's backbone is missing or damaged.
    """
    made_of, file = store.manifest["made_of"], Path(weights)
    if "import" in made_of:
        made_by = made_of.get("backbone", {}).get("weights", {}).get("sha256")
        if made_by is None or not file.is_file() or sha256_file(file) != made_by:
            return None
    return find_classifier(weights, store.map_shape[0], len(store.class_names))
