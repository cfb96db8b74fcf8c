"""Train the heads on the cached maps: the backbone's own classifier, a linear probe, DSTS."""

from __future__ import annotations

import shutil

import torch

from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import LinearProbe, take_over_classifier
from dsts_pipeline.learn import TrainingOptions, check_clips
from stages import places
from stages.classifier import classifier_of
from stages.curves import log_curves
from stages.dsts import build_dsts
from stages.inputs import open_features
from stages.training_options import dsts_options, options_of_feed
from stages.trainings import Trainings, open_trainings


def run(settings: Settings) -> None:
    """Write one folder per head below outputs/heads, and the curves of the DSTS head."""
    options = {"seed": settings.seed, "udl": False, **options_of_feed(settings.feed)}
    with open_trainings(settings.train, options) as trainings:
        _train_heads(settings, trainings)


def _train_heads(settings: Settings, trainings: Trainings) -> None:
    store = open_features(settings.feed)
    rows = store.rows_of_split("train")
    sizes = store.map_shape[0], len(store.class_names)
    classifier = classifier_of(settings.backbone.weights, store)
    head = build_dsts(settings, sizes, classifier)
    paired = settings.udl.enabled and bool(head.upstream_parameters())
    options, num = TrainingOptions(**trainings.options), trainings.processes.world_size
    check_clips(store, rows, options, paired=paired, world_size=num)
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
        shutil.rmtree(places.HEADS / "baseline", ignore_errors=True)  # of another backbone
        console.print(f"no baseline: no classifier of this backbone fits {sizes[1]} classes")

    torch.manual_seed(derive_seed(settings.seed, "linear_probe"))
    probe = LinearProbe(*sizes)
    history = trainings.train("Training linear probe", probe, feed)
    trainings.save("linear_probe", "linear probe", probe, history)

    board = places.TENSORBOARD if settings.train.tensorboard else None
    with log_curves(places.CURVES, board, trainings.processes.is_first) as log:
        history = trainings.train("Training DSTS head", head, feed, log, **dsts_options(settings))
    title = f"DSTS head (N = {settings.head.num_neurons}, L = {settings.head.num_layers})"
    trainings.save("dsts", title, head, history)
