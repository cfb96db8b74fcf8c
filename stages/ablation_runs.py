"""The trainings that the settings of an ablation ask for, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.grid import Variant
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn import TrainingOptions, stop_on_sigterm
from dsts_pipeline.learn.ablation import RunPlan, Runs, show_ablation, train_in_processes
from dsts_pipeline.learn.processes import choose_device
from stages.training_options import dsts_options

Plans = Mapping[str, Sequence[RunPlan]]


def plan_runs(variant: Variant, seeds: Sequence[int], data_seed: int) -> list[RunPlan]:
    """A training per seed, all of them through the batches of one seed of the data."""
    settings = variant.settings
    options = TrainingOptions(**dsts_options(settings))
    if options.data_seed is None:
        options = replace(options, data_seed=data_seed)
    if variant.kind != "dsts":
        options = replace(options, udl=False)
    head = settings.head.model_dump(exclude={"take_over_classifier"})
    take_over = settings.head.take_over_classifier
    return [
        RunPlan(variant.name, variant.kind, head, take_over, replace(options, seed=seed))
        for seed in seeds
    ]


def train_runs(
    settings: Settings, runs: Runs, plans: Sequence[RunPlan], store: FeatureStore
) -> dict[Path, str]:
    """Train what is not finished; returns why runs diverged, by their folders."""
    todo, chosen = runs.unfinished(plans), settings.ablate
    if settings.train.devices > 1:
        raise SettingsError(
            f"train.devices is {settings.train.devices}: several processes that train one head; "
            "an ablation shares out its heads instead: set train.devices to 1 and ablate.jobs"
        )
    for name in ("keep_checkpoints", "tensorboard"):
        if getattr(settings.train, name):
            console.print(f"train.{name} has no effect here: an ablation keeps heads and histories")
    num_runs = len({runs.folder(plan) for plan in plans})
    console.print(f"{num_runs} trainings, {num_runs - len(todo)} of them finished before")
    if not todo:
        return {}
    device, rows = torch.device(choose_device(settings.train.device)), store.rows_of_split("train")
    with stop_on_sigterm(settings.train.requeue_status) as stop, show_ablation(len(todo)) as shown:
        several, room = chosen.jobs > 1 and len(todo) > 1, settings.feed.preload_bytes
        feed = FeatureFeed(store, rows, preload_bytes=room, shared=several)
        if several:
            common: dict[str, Any] = {"num_jobs": chosen.jobs, "tell": shown.tell, "stop": stop}
            return train_in_processes(runs, todo, feed, device, **common)
        return runs.train(todo, feed, device, tell=shown.tell, stop=stop)
