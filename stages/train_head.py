"""Train the heads on the cached maps: the backbone's own classifier, a linear probe, DSTS."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance, derive_seed
from dsts_pipeline.base.settings import Settings, TrainSettings
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import LinearProbe, save_head, take_over_classifier
from dsts_pipeline.head.building import build_dsts, classifier_of
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    TrainingOptions,
    check_clips,
    hold_together,
    joined_processes,
    remove_checkpoints,
    stop_on_sigterm,
    train_head,
)
from dsts_pipeline.learn.options import OF_THE_RUN, dsts_options, options_of_feed
from dsts_pipeline.learn.train import log_curves
from stages import common


def run(settings: Settings) -> None:
    """Write one folder per head below outputs/heads, and the curves of the DSTS head."""
    options = {"seed": settings.seed, "udl": False, **options_of_feed(settings.feed)}
    with _open_trainings(settings.train, options) as trainings:
        _train_heads(settings, trainings)


def _train_heads(settings: Settings, trainings: Trainings) -> None:
    store = open_features(common.FEATURES, settings.feed)
    rows = store.rows_of_split("train")
    sizes = store.map_shape[0], len(store.class_names)
    classifier = classifier_of(settings.backbone.weights, store)
    head = build_dsts(settings.head, sizes, classifier, settings.seed)
    paired = settings.udl.enabled and bool(head.upstream_parameters())
    num_processes = trainings.processes.world_size
    options = TrainingOptions(**trainings.options)
    check_clips(store, rows, options, paired=paired, world_size=num_processes)
    feed = FeatureFeed(store, rows, preload_bytes=settings.feed.preload_bytes)
    names = "head", "udl", "train", "feed"
    made_by = {name: getattr(settings, name).model_dump(mode="json") for name in names}
    made_by["seed"] = settings.seed
    trainings.made_of = {"store": store.fingerprint, "provenance": collect_provenance(made_by)}
    trainings.saved.identity = {"store": store.fingerprint}

    if classifier:
        baseline = LinearProbe(*sizes)
        take_over_classifier(baseline, *classifier)
        trainings.save("baseline", "backbone's classifier", baseline, [])
    elif trainings.processes.is_first:
        shutil.rmtree(common.HEADS / "baseline", ignore_errors=True)  # of another backbone
        console.print(f"no baseline: no classifier of this backbone fits {sizes[1]} classes")

    torch.manual_seed(derive_seed(settings.seed, "linear_probe"))
    probe = LinearProbe(*sizes)
    history = trainings.train("Training linear probe", probe, feed)
    trainings.save("linear_probe", "linear probe", probe, history)

    board = common.TENSORBOARD if settings.train.tensorboard else None
    own = dsts_options(settings.train, settings.udl, settings.feed, settings.seed)
    with log_curves(common.CURVES, board, trainings.processes.is_first) as log:
        history = trainings.train("Training DSTS head", head, feed, log, **own)
    title = f"DSTS head (N = {settings.head.num_neurons}, L = {settings.head.num_layers})"
    trainings.save("dsts", title, head, history)


# ---- what the trainings have in common ---------------------------------------------------------


class Trainings:
    """Trains heads with common `options` and saves them below outputs/heads.

    Attributes:
        made_of: What every head's file says of its making.
    """

    def __init__(
        self, processes: Processes, saved: CheckpointOptions, options: dict[str, Any]
    ) -> None:
        self.processes = processes
        self.saved = saved
        self.options = options
        self.made_of = dict[str, Any]()

    def train(
        self,
        name: str,
        head: nn.Module,
        feed: FeatureFeed,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Train `head`, shown under `name`; returns its history."""
        options = {"on_epoch": on_epoch, **self.options, **options}
        together: dict[str, Any] = {"processes": self.processes, "checkpoints": self.saved}
        return train_head(head, feed, title=name, **together, **options)

    def save(self, name: str, title: str, head: nn.Module, history: list[dict[str, Any]]) -> None:
        """Write a head's folder; the first process does."""
        if self.processes.is_first:
            write_json(common.HEADS / name / "history.json", sign({"epochs": history}))
            save_head(common.HEADS / name, head, self.made_of | {"title": title})


@contextmanager
def _open_trainings(chosen: TrainSettings, options: dict[str, Any]) -> Iterator[Trainings]:
    """Join processes, heed SIGTERM; when all went well, delete the checkpoints unless kept.

    Raises:
        BusyError: Another process trains into outputs/heads, or evaluates what is there.
    """
    options = chosen.model_dump(exclude=OF_THE_RUN) | options
    with (
        joined_processes(chosen.device, chosen.devices) as processes,
        hold_together(processes, common.HEADS, "train-head"),
        stop_on_sigterm(chosen.requeue_status) as stop,
    ):
        every = chosen.checkpoint_every_batches
        saved = CheckpointOptions(common.CHECKPOINTS, every_batches=every, stop=stop)
        yield Trainings(processes, saved, options)
        if chosen.keep_checkpoints:
            console.print(f"checkpoints: {', '.join(map(str, saved.used))}")
        elif processes.is_first:
            remove_checkpoints(saved)
