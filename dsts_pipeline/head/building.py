"""A new head for the maps of a store, and the one that its backbone was published with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.extract.downloads import (
    RANDOM,
    digest_of_weights,
    locate_weights,
    place_weights,
)
from dsts_pipeline.extract.weights import find_classifier
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.head.dsts import (
    DSTSHead,
    readout_options,
    take_over,
    take_over_classifier,
    takes_over,
)
from dsts_pipeline.head.probes import AttentiveProbe, GSTHead, LinearProbe, OwnHead
from dsts_pipeline.head.published import find_published_probe
from dsts_pipeline.head.readout import ReadoutHead
from dsts_pipeline.head.tqn import TQNHead


def own_head_of(weights: str | Path | None, store: FeatureStore) -> OwnHead | None:
    """What the backbone whose maps are in `store` was published with: its classifier or probe.

    It is None where none fits, or another backbone made the maps.

    Args:
        weights: the backbone's weights: a file, a folder or an address; None: there are none.

    Raises:
        CheckpointError: The weights of an extracted store's backbone are missing, damaged, or not
            those that made the maps.
    """
    if weights is None:
        return None
    made_of = store.manifest["made_of"]
    file = place_weights(weights)
    made_by = made_of.get("backbone", {}).get("weights", {}).get("sha256")
    if "import" in made_of:
        if made_by is None or not file.is_file() or sha256_file(file) != made_by:
            return None
    elif made_by is not None and str(weights) != RANDOM:
        found = digest_of_weights(file) if file.is_dir() else locate_weights(weights).sha256
        if found != made_by:
            raise CheckpointError(
                f"{weights}: its sha256 is {found[:12]}..., the maps of {store.location} are of "
                f"weights {made_by[:12]}...; set backbone.weights to these, or run "
                "`python cli.py extract`"
            )
    sizes = store.map_shape[0], len(store.class_names)
    if file.is_dir():
        return find_published_probe(file, sizes[0], store.class_names)
    classifier = find_classifier(weights, *sizes)
    if classifier is None:
        return None
    own = LinearProbe(*sizes)
    take_over_classifier(own, *classifier)
    return own.eval()


def title_of(own: OwnHead) -> str:
    """What a backbone's own head is called in tables."""
    if own.pooler is None:
        return "backbone's classifier"
    return f"published probe (depth {own.config['readout_depth']})"


Attributes = Sequence[Sequence[str]]
"""The values of each class, a row a class; none where a data set tells none."""


def new_head(
    chosen: HeadSettings, sizes: tuple[int, int], attributes: Attributes = ()
) -> ReadoutHead:
    """A head of the settings' kind; draws from torch's global generator.

    Raises:
        ValueError: Its arguments exclude each other, or do not fit the maps or the data set.
    """
    if chosen.kind == "gst":
        of_gst = chosen.model_dump(include={"num_layers", "width", "zero_start"})
        return GSTHead(*sizes, **of_gst | readout_options(chosen))
    if chosen.kind == "tqn":
        names = {"num_layers", "width", "class_query", "readout_heads", "readout_dropout"}
        return TQNHead(*sizes, attributes=attributes, **chosen.model_dump(include=names))
    return DSTSHead.from_settings(*sizes, chosen)


def attends(chosen: HeadSettings) -> bool:
    """Whether the head of the settings reads by attention, so that an attentive probe is its
    readout alone."""
    return chosen.kind in ("dsts", "gst") and chosen.readout == "attentive"


def new_probe(kind: str, chosen: HeadSettings, sizes: tuple[int, int]) -> ReadoutHead:
    """A "linear_probe" or an "attentive_probe" with what concerns it of a head's settings.

    Raises:
        ValueError: They do not fit the maps.
    """
    if kind == "linear_probe":
        return LinearProbe(*sizes, readout_dropout=chosen.readout_dropout)
    return AttentiveProbe(*sizes, **readout_options(chosen, with_kind=False))


def title_of_chosen(chosen: HeadSettings) -> str:
    """What the head of the settings is called in tables."""
    if chosen.kind == "dsts":
        return f"DSTS head (N = {chosen.num_neurons}, L = {chosen.num_layers})"
    return f"{chosen.kind.upper()} head (L = {chosen.num_layers})"


def build_head(
    chosen: HeadSettings,
    sizes: tuple[int, int],
    own: OwnHead | None,
    seed: int,
    attributes: Attributes = (),
) -> ReadoutHead:
    """The untrained head of the settings; its first values depend on them and `seed` alone.

    Args:
        sizes: Channels of the maps, number of classes.
        own: The backbone's own head, from which it starts where the settings say so
            (`takes_over`).
        attributes: Of the store's classes, for heads that ask for them.

    Raises:
        SettingsError: Its arguments exclude each other, or do not fit the maps.
    """
    torch.manual_seed(derive_seed(seed, "dsts"))
    try:
        head = new_head(chosen, sizes, attributes)
    except ValueError as error:
        raise SettingsError(f"head: {error}") from None
    if own is not None and takes_over(chosen, own):
        take_over(head, own)
    return head
