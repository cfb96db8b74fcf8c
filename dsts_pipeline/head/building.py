"""A new head for the maps of a store, and the classifier of the backbone that made them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.extract.downloads import RANDOM, locate_weights, place_weights
from dsts_pipeline.extract.weights import find_classifier
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.head.dsts import DSTSHead, take_over_classifier, takes_over

Classifier = tuple[Tensor, Tensor]  # weight [K, C] and bias [K]


def classifier_of(weights: str | Path | None, store: FeatureStore) -> Classifier | None:
    """The classifier that belongs to the backbone whose maps are in `store`.

    It is None where none fits, or another backbone made the maps.

    Args:
        weights: the backbone's weights: a file or an address; None: there are none.

    Raises:
        CheckpointError: The weights file of an extracted store's backbone is missing, damaged, or
            not the one that made the maps.
    """
    if weights is None:
        return None
    made_of = store.manifest["made_of"]
    file = place_weights(weights)
    made_by = made_of.get("backbone", {}).get("weights", {}).get("sha256")
    if "import" in made_of:
        if made_by is None or not file.is_file() or sha256_file(file) != made_by:
            return None
    elif made_by is not None and not (str(weights) == RANDOM or file.is_dir()):
        found = locate_weights(weights).sha256
        if found != made_by:
            raise CheckpointError(
                f"{weights}: its sha256 is {found[:12]}..., the maps of {store.location} are of "
                f"weights {made_by[:12]}...; set backbone.weights to these, or run "
                "`python cli.py extract`"
            )
    return find_classifier(weights, store.map_shape[0], len(store.class_names))


def build_dsts(
    chosen: HeadSettings, sizes: tuple[int, int], classifier: Classifier | None, seed: int
) -> DSTSHead:
    """The untrained head of the settings; its first values depend on them and `seed` alone.

    Args:
        sizes: Channels of the maps, number of classes.
        classifier: The backbone's own, taken over where the settings say so (`takes_over`).

    Raises:
        SettingsError: Its arguments exclude each other, or do not fit the maps.
    """
    torch.manual_seed(derive_seed(seed, "dsts"))
    try:
        head = DSTSHead.from_settings(*sizes, chosen)
    except ValueError as error:
        raise SettingsError(f"head: {error}") from None
    if classifier and takes_over(chosen):
        take_over_classifier(head, *classifier)
    return head
