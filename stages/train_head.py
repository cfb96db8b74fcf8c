"""Train the heads on the cached maps: the backbone's own classifier, a linear probe, DSTS."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import DSTSHead, LinearProbe, save_head, take_over_classifier
from dsts_pipeline.learn import train_head
from stages import places
from stages.classifier import classifier_of
from stages.curves import log_curves
from stages.inputs import open_features


def run(settings: Settings) -> None:
    """Write one folder per head below outputs/heads, and the curves of the DSTS head."""
    store = open_features(settings.feed)
    rows = store.rows_of_split("train")
    feed = FeatureFeed(store, rows, preload_bytes=settings.feed.preload_bytes)
    sizes = store.map_shape[0], len(store.class_names)
    options = settings.train.model_dump() | {"seed": settings.seed, "udl": False}
    options |= settings.feed.model_dump(include={"order", "shard_window", "class_balanced"})
    classifier = classifier_of(settings.backbone.weights, store)
    names = "head", "udl", "train", "feed"
    made_by = {name: getattr(settings, name).model_dump(mode="json") for name in names}
    made_by["seed"] = settings.seed
    made_of = {"store": store.fingerprint, "provenance": collect_provenance(made_by)}

    if classifier:
        baseline = LinearProbe(*sizes)
        take_over_classifier(baseline, *classifier)
        _save("baseline", "backbone's classifier", baseline, [], made_of)
    else:
        shutil.rmtree(places.HEADS / "baseline", ignore_errors=True)  # of another backbone
        console.print(f"no baseline: no classifier of this backbone fits {sizes[1]} classes")

    torch.manual_seed(derive_seed(settings.seed, "linear_probe"))
    probe = LinearProbe(*sizes)
    history = train_head(probe, feed, title="Training linear probe", **options)
    _save("linear_probe", "linear probe", probe, history, made_of)

    head = _build_dsts(settings, sizes)
    if classifier and settings.head.take_over_classifier:
        take_over_classifier(head, *classifier)
    udl = settings.udl
    options |= {"udl": udl.enabled, "udl_method": udl.method, "redraw_noise": udl.redraw_noise}
    options["inner_learning_rate"] = udl.inner_learning_rate
    with log_curves(places.CURVES) as log:
        history = train_head(head, feed, title="Training DSTS head", on_epoch=log, **options)
    title = f"DSTS head (N = {settings.head.num_neurons}, L = {settings.head.num_layers})"
    _save("dsts", title, head, history, made_of)


def _build_dsts(settings: Settings, sizes: tuple[int, int]) -> DSTSHead:
    torch.manual_seed(derive_seed(settings.seed, "dsts"))
    try:
        return DSTSHead(*sizes, **settings.head.model_dump(exclude={"take_over_classifier"}))
    except ValueError as error:
        raise SettingsError(f"head: {error}") from None


def _save(
    name: str, title: str, head: nn.Module, history: list[dict[str, Any]], made_of: dict[str, Any]
) -> None:
    write_json(places.HEADS / name / "history.json", {"epochs": history})
    save_head(places.HEADS / name, head, made_of | {"title": title})
