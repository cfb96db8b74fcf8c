"""Search settings of the head and its training on clips held out of train; test is never read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dsts_pipeline.base.children import Budget, BudgetOver
from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import with_values
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import ReadoutHead
from dsts_pipeline.head.building import build_head, own_head_of
from dsts_pipeline.head.probes import OwnHead
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    Recipe,
    check_clips,
    fit_recipe,
    joined_processes,
    remove_checkpoints,
    stop_on_sigterm,
    train_head,
)
from dsts_pipeline.learn.estimate import estimate_seconds, tell_seconds
from dsts_pipeline.learn.search import (
    Dimension,
    OnEpoch,
    Study,
    TrialRefused,
    import_optuna,
    locked_study,
    name_study,
    present_values,
    print_trials,
    read_space,
    write_trials,
)
from dsts_pipeline.learn.steps import upstream_of
from dsts_pipeline.learn.train import require_held_out, warn_of_groups
from stages import common


def run(settings: Settings) -> None:
    """Run trials until the study has `search.num_trials`; write trials.json and best_params.yaml.

    Raises:
        SettingsError: Optuna is missing, nothing is held out, the space can't be searched, or no
            trial came to its end.
    """
    dimensions = read_space(settings)
    train = settings.train
    how = settings.search
    import_optuna()
    store = open_features(common.FEATURES, settings.feed, settings.dataset)
    rows = store.rows_of_split("train")
    adapted = _check_ends(settings, dimensions, store, rows)
    if adapted:
        others = f" ({len(adapted) - 1} more like this in trials.json)" if adapted[1:] else ""
        console.print(adapted[0] + others, soft_wrap=True, markup=False, highlight=False)
    warn_of_groups(store, Recipe(train, settings.udl, settings.feed, settings.seed))
    own = own_head_of(settings.backbone.weights, store)
    with (
        locked_study(common.SEARCH) as folder,
        joined_processes(train.device, 1) as processes,
        stop_on_sigterm(train.requeue_status, Budget(how.minutes)) as stop,
    ):
        name = name_study(settings, dimensions, store.division)
        present = present_values(settings, dimensions)
        study = Study(
            folder,
            name,
            dimensions,
            present=present,
            seed=settings.seed,
            how=how,
        )
        console.print(f"study {name}: {len(study.finished)} of {how.num_trials} trials are done")
        saved = CheckpointOptions(
            folder / "checkpoints",
            {"store": store.division},
            train.checkpoint_every_batches,
            stop,
        )
        feed = FeatureFeed.from_settings(store, rows, settings.feed, device=processes.device)
        trainer = TrialTrainer(settings, feed, own, processes, saved)
        _run_trials(settings, study, trainer, name, adapted)
    print_trials(common.SEARCH, study.finished, present)
    if study.finished and all(trial.state == "refused" for trial in study.finished):
        raise SettingsError("every trial was refused: see the reasons above; change search.space")


def _check_ends(
    settings: Settings, dimensions: list[Dimension], store: FeatureStore, rows: np.ndarray
) -> list[str]:
    """Refuse a space one of whose ends can't be trained, by itself, on this store.

    Returns:
        How trainings are fitted to few clips, in words, each once.

    Raises:
        SettingsError: One can't, or has no held-out clips to be judged by.
    """
    told = list[str]()
    sizes = store.map_shape[0], len(store.class_names)
    for dimension in dimensions:
        for value in dimension.ends:
            tried = with_values(settings, {dimension.key: value})
            paired = False
            if tried.udl.enabled:
                head = build_head(tried.head, sizes, None, tried.seed, store.attributes)
                paired = bool(upstream_of(head))
            told.append(_fit(tried, store, rows, paired)[1])
    return list(dict.fromkeys(filter(None, told)))


def _fit(
    tried: Settings, store: FeatureStore, rows: np.ndarray, paired: bool
) -> tuple[Recipe, str]:
    """What `train-head` would train by with these settings, and what was changed, in words.

    Raises:
        SettingsError: There are too few clips, to train or to judge a trial by.
    """
    asked = Recipe(tried.train, tried.udl, tried.feed, tried.seed)
    recipe, adapted = fit_recipe(store, rows, asked, paired=paired)
    check_clips(store, rows, recipe, paired=paired)
    require_held_out(store, rows, recipe)
    return recipe, adapted


def _run_trials(
    settings: Settings, study: Study, trainer: TrialTrainer, name: str, adapted: list[str]
) -> None:
    """As many as are missing, unless time is over: then the last one is saved where it is."""
    how = settings.search
    if len(study.finished) < how.num_trials:
        told = _tell_time(study, trainer.estimate_seconds(), how.num_trials)
        console.print(told, soft_wrap=True)
    try:
        while len(study.finished) < how.num_trials:
            trainer.look_at_budget()
            told = study.run_trial(trainer).told
            trainer.forget()
            write_trials(common.SEARCH, settings, study.finished, name, adapted)
            seconds = sum(trial.seconds for trial in study.finished) / len(study.finished)
            left = _tell_time(study, seconds, how.num_trials)
            console.print(f"{told}; {left}", soft_wrap=True)
    except BudgetOver:
        console.print(
            f"no time for another epoch (search.minutes is {how.minutes:g}): {len(study.finished)} "
            f"of {how.num_trials} trials are done; the same command goes on",
            soft_wrap=True,
        )


def _tell_time(study: Study, seconds: float, num_trials: int) -> str:
    """What is left, where a trial takes `seconds`."""
    left = num_trials - len(study.finished)
    return f"{left} trials left, about {tell_seconds(left * seconds)}"


@dataclass
class TrialTrainer:
    """Trains a trial's head on the training split; every trial begins with the same seed."""

    settings: Settings
    feed: FeatureFeed
    own: OwnHead | None
    processes: Processes
    saved: CheckpointOptions

    def __call__(self, number: int, values: dict[str, Any], on_epoch: OnEpoch) -> None:
        """Train with `values`; values that can't be trained, or diverge, refuse the trial."""
        sizes = self.feed.map_shape[0], self.feed.num_classes
        try:
            tried = with_values(self.settings, values)
            attributes = self.feed.store.attributes
            head = build_head(tried.head, sizes, self.own, tried.seed, attributes)
            train_head(
                head,
                self.feed,
                self._fit(tried, head).train,
                tried.udl,
                reading=tried.feed,
                seed=tried.seed,
                on_epoch=on_epoch,
                title=f"Trial {number}",
                processes=self.processes,
                checkpoints=self.saved,
            )
        except SettingsError as error:
            raise TrialRefused(str(error)) from None

    def estimate_seconds(self) -> float:
        """Of a trial with the settings as they are, from its first steps."""
        settings = self.settings
        sizes = self.feed.map_shape[0], self.feed.num_classes
        attributes = self.feed.store.attributes
        build = partial(build_head, settings.head, sizes, self.own, settings.seed, attributes)
        recipe = self._fit(settings, build())
        return estimate_seconds(build, self.feed, recipe, self.processes)

    def _fit(self, tried: Settings, head: ReadoutHead) -> Recipe:
        paired = tried.udl.enabled and bool(upstream_of(head))
        return _fit(tried, self.feed.store, self.feed.rows, paired)[0]

    def look_at_budget(self) -> None:
        """Before a trial.

        Raises:
            BudgetOver: There is no time for an epoch of it.
        """
        if self.saved.stop is not None and self.saved.stop.budget.is_over:
            raise BudgetOver("no time for another epoch")

    def forget(self) -> None:
        """Delete the checkpoints of finished trials."""
        remove_checkpoints(self.saved)
        self.saved.used.clear()
