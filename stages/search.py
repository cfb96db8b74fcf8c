"""Search settings of the head and its training on clips held out of train; test is never read."""

from __future__ import annotations

import time

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn import CheckpointOptions, joined_processes, stop_on_sigterm
from dsts_pipeline.learn.search import Pruning, Study, import_optuna, locked_study
from stages import places
from stages.classifier import classifier_of
from stages.inputs import open_features
from stages.search_space import name_study, present_values, read_space
from stages.search_table import print_trials, write_trials
from stages.search_trials import TrialTrainer, check_ends


def run(settings: Settings) -> None:
    """Run trials until the study has `search.num_trials`; write trials.json and best_params.yaml.

    Raises:
        SettingsError: Optuna is missing, nothing is held out, the space can't be searched, or no
            trial came to its end.
    """
    dimensions, train, how = read_space(settings), settings.train, settings.search
    import_optuna()
    store = open_features(settings.feed)
    rows = store.rows_of_split("train")
    check_ends(settings, dimensions, store, rows)
    classifier = classifier_of(settings.backbone.weights, store)
    with (
        locked_study(places.SEARCH) as folder,
        joined_processes(train.device, 1) as processes,
        stop_on_sigterm(train.requeue_status) as stop,
    ):
        name = name_study(settings, dimensions, store.fingerprint)
        present = present_values(settings, dimensions)
        study = Study(
            folder,
            name,
            dimensions,
            present=present,
            seed=settings.seed,
            pruning=Pruning(how.pruner, how.startup_trials, how.warmup_epochs),
        )
        console.print(f"study {name}: {len(study.finished)} of {how.num_trials} trials are done")
        saved = CheckpointOptions(
            folder / "checkpoints",
            {"store": store.fingerprint},
            train.checkpoint_every_batches,
            stop,
        )
        feed = FeatureFeed(store, rows, preload_bytes=settings.feed.preload_bytes)
        _run_trials(
            settings, study, TrialTrainer(settings, feed, classifier, processes, saved), name
        )
    print_trials(study.finished, present)
    if study.finished and all(trial.state == "refused" for trial in study.finished):
        raise SettingsError("every trial was refused: see the reasons above; change search.space")


def _run_trials(settings: Settings, study: Study, trainer: TrialTrainer, name: str) -> None:
    """As many as are missing, unless time is over."""
    began, limit = time.monotonic(), settings.search.timeout_seconds
    while (done := len(study.finished)) < settings.search.num_trials:
        if limit is not None and time.monotonic() - began > limit:
            console.print(f"search.timeout_seconds is over: {done} trials are done")
            return
        console.print(study.run_trial(trainer).told)
        trainer.forget()
        write_trials(settings, study.finished, name)
