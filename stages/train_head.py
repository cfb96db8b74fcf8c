"""Train heads on the cached maps: the chosen one and probes, beside the backbone's own."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance, derive_seed
from dsts_pipeline.base.settings import Settings, UdlSettings
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import save_head
from dsts_pipeline.head.building import (
    attends,
    build_head,
    new_probe,
    own_head_of,
    title_of,
    title_of_chosen,
)
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    Recipe,
    check_clips,
    fit_recipe,
    hold_together,
    joined_processes,
    remove_checkpoints,
    stop_on_sigterm,
    train_head,
)
from dsts_pipeline.learn.loggers import log_curves, require_packages
from dsts_pipeline.learn.steps import upstream_of
from dsts_pipeline.learn.train import warn_of_groups
from stages import common


def run(settings: Settings) -> None:
    """Write one folder per head below outputs/heads, and the curves of the DSTS head.

    Raises:
        BusyError: Another process trains into outputs/heads, or evaluates what is there.
        SettingsError: The package of a logger is not installed.
    """
    train = settings.train
    require_packages(train.loggers)
    with (
        joined_processes(train.device, train.devices) as processes,
        hold_together(processes, common.HEADS, "train-head"),
        stop_on_sigterm(train.requeue_status) as stop,
    ):
        every = train.checkpoint_every_batches
        saved = CheckpointOptions(common.CHECKPOINTS, every_batches=every, stop=stop)
        _train_heads(settings, processes, saved)
        if processes.is_first:
            remove_checkpoints(saved)


def _train_heads(settings: Settings, processes: Processes, saved: CheckpointOptions) -> None:
    store = open_features(common.FEATURES, settings.feed, settings.dataset)
    rows = store.rows_of_split("train")
    sizes = store.map_shape[0], len(store.class_names)
    own = own_head_of(settings.backbone.weights, store)
    head = build_head(settings.head, sizes, own, settings.seed, store.attributes)
    asked = Recipe(settings.train, settings.udl, settings.feed, settings.seed)
    paired = settings.udl.enabled and bool(upstream_of(head))
    together: dict[str, Any] = {"paired": paired, "world_size": processes.world_size}
    recipe, adapted = fit_recipe(store, rows, asked, **together)
    check_clips(store, rows, recipe, **together)
    train = recipe.train
    if processes.is_first:
        if adapted:
            console.print(adapted, soft_wrap=True, markup=False, highlight=False)
        warn_of_groups(store, recipe)
    feed = FeatureFeed.from_settings(store, rows, settings.feed, device=processes.device)
    names = "head", "udl", "train", "feed"
    made_by = {name: getattr(settings, name).model_dump(mode="json") for name in names}
    made_by["train"] = train.model_dump(mode="json")
    provenance = collect_provenance(made_by | {"seed": settings.seed})
    made_of = {"store": store.fingerprint, "provenance": provenance} | store.describe_reading()
    if adapted:
        made_of["adapted"] = adapted
    saved.identity = {"store": store.division}

    def save(name: str, title: str, head: nn.Module, history: list[dict[str, Any]]) -> None:
        if processes.is_first:
            if untrained := _tell_untrained(title, history):
                console.print(untrained, soft_wrap=True, markup=False, highlight=False)
            of_run = {"epochs": history} | ({"adapted": adapted} if adapted else {})
            write_json(common.HEADS / name / "history.json", sign(of_run))
            save_head(common.HEADS / name, head, made_of | {"title": title})

    if own is not None:
        save("baseline", title_of(own), own, [])
    elif processes.is_first:
        shutil.rmtree(common.HEADS / "baseline", ignore_errors=True)  # of another backbone
        console.print(f"no baseline: no classifier of this backbone fits {sizes[1]} classes")

    if not attends(settings.head) and processes.is_first:
        shutil.rmtree(common.HEADS / "attentive_probe", ignore_errors=True)  # of other settings
    for name in ("linear_probe", *(["attentive_probe"] if attends(settings.head) else [])):
        torch.manual_seed(derive_seed(settings.seed, "linear_probe"))
        probe = new_probe(name, settings.head, sizes)
        title = name.replace("_", " ")
        history = train_head(
            probe,
            feed,
            train,
            UdlSettings(enabled=False),
            reading=settings.feed,
            seed=settings.seed,
            title=f"Training {title}",
            processes=processes,
            checkpoints=saved,
        )
        save(name, title, probe, history)

    decided = made_by | {"seed": settings.seed, "store": store.division}
    loggers = train.loggers
    with log_curves(loggers, common.OUTPUTS, decided, is_first=processes.is_first) as log:
        history = train_head(
            head,
            feed,
            train,
            settings.udl,
            reading=settings.feed,
            seed=settings.seed,
            on_epoch=log,
            title=f"Training {settings.head.kind.upper()} head",
            processes=processes,
            checkpoints=saved,
        )
    save("dsts", title_of_chosen(settings.head), head, history)


def _tell_untrained(title: str, history: list[dict[str, Any]]) -> str:
    """That no epoch was better on held-out clips than the head as it began, where it is so."""
    if not history:
        return f"warning: {title}: train.num_epochs is 0, so the head is untrained"
    judged = [epoch for epoch in history if "heldout_accuracy" in epoch]
    if not judged or any(epoch.get("best") for epoch in judged):
        return ""
    return (
        f"warning: {title}: of {len(judged)} epochs none was more accurate on the held-out clips "
        "than the untrained head, so that one is kept; train for longer, or at another "
        "train.learning_rate"
    )
