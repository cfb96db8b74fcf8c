"""The training of a head on cached maps, from wherever it was stopped.

Enters: a head, a `FeatureFeed` over the training split, sections of the settings. Leaves: the head,
trained in place and in evaluation mode, and a history of plain dictionaries. What an epoch does is
in `training`, what a step does in `steps`, the second-order gradient in `udl`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.groups import tell_shared_groups
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import FeedSettings, TrainSettings, UdlSettings
from dsts_pipeline.base.training_clips import (
    doubt_held_out,
    find_shortage,
    fit_to_clips,
    hold_out,
)
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.resume import CheckpointOptions, Keeper
from dsts_pipeline.learn.training import Recipe, Training, require_groups

OnEpoch = Callable[[dict[str, Any]], None]


def train_head(
    head: nn.Module,
    feed: FeatureFeed,
    train: TrainSettings,
    udl: UdlSettings = UdlSettings(),
    *,
    reading: FeedSettings = FeedSettings(),
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    title: str = "train",
    processes: Processes = ALONE,
    checkpoints: CheckpointOptions | None = None,
) -> list[dict[str, Any]]:
    """Train `head` on the clips of `feed`; with a held-out part, keep the best epoch's values:
    the most accurate on it, of equals those of the lower loss.

    The untrained head takes part in that choice, so a head that starts at its baseline does not
    end below it on the held-out clips.

    With `checkpoints`, a training that was stopped in any way goes on from its last checkpoint and
    ends with the same weights, bit for bit on the same machine. The checkpoint of a finished
    training stays until `remove_checkpoints`: asked again, it comes to its end at once.

    Args:
        feed: All training rows; held-out clips are taken from them.
        train: Optimiser, schedule, what is held out.
        udl: Whether and how a `DSTSHead` that has upstream parameters is trained by UDL.
        reading: In which order clips come.
        seed: Of noise, mixup, batches and held-out clips.
        on_epoch: Called with each entry of the history, those of before a stop included.
        title: What the progress bar says.
        processes: Those that train together; each calls this with equal arguments.
        checkpoints: Where and how often to save; None for never.

    Returns:
        Per epoch: epoch, train_loss, train_accuracy, seconds; where clips are held out heldout_loss
        and heldout_accuracy, best (whether it is the best so far), best_accuracy and best_loss (of
        the best so far, which may be the untrained head); for a `DSTSHead` layers (see
        `inspection.summarize_layer`).

    Raises:
        SettingsError: The head is made for other maps or classes, too few clips for UDL's pairs of
            batches, or the training diverged.
        CheckpointError: The checkpoint is damaged or in use.
        TrainingStopped: A stop was asked for; the training is saved.
    """
    check_head(head, feed)
    training = Training(head, feed, Recipe(train, udl, reading, seed), processes)
    return run_training(training, checkpoints, title, on_epoch)


def run_training(
    training: Training,
    checkpoints: CheckpointOptions | None,
    title: str,
    on_epoch: OnEpoch | None = None,
) -> list[dict[str, Any]]:
    """Bring `training` to its end from wherever its checkpoint is; returns its history.

    Raises:
        SettingsError, CheckpointError, TrainingStopped: As `train_head` does.
    """
    with Keeper(training, checkpoints) as keeper:
        if keeper.resume():
            console.print(f"{title}: goes on from {training.watch.last_good}")
        else:
            training.make_passes(training.start())
        _run_epochs(training, keeper, title, on_epoch or (lambda entry: None))
        training.make_passes(training.finish())
    return training.history


def _run_epochs(training: Training, keeper: Keeper, title: str, on_epoch: OnEpoch) -> None:
    """From where the training is to its last epoch."""
    for entry in training.history:
        on_epoch(entry)
    num_epochs = training.how.num_epochs
    num_clips = training.sampler.num_clips
    done = len(training.history) * num_clips + training.tally.num_clips
    with track(title, num_epochs * num_clips, done=done) as progress:
        while not training.is_done:
            on_epoch(training.run_epoch(progress, keeper.after_batch))
            keeper.after_epoch()


# ---- what can't train, told before a map is read -----------------------------------------------


def fit_recipe(
    store: FeatureStore,
    rows: np.ndarray,
    recipe: Recipe,
    *,
    paired: bool,
    world_size: int = 1,
) -> tuple[Recipe, str]:
    """The recipe with a batch that the clips fill, and what was changed, "" where nothing was.

    Arguments are those of `check_clips`, which refuses what can't be helped.
    """
    fitted = fit_to_clips(**_clips_and_wishes(store, rows, recipe, paired, world_size))
    values = {"batch_size": fitted.batch_size, "heldout_fraction": fitted.heldout_fraction}
    train = recipe.train.model_copy(update=values)
    return dataclasses.replace(recipe, train=train), fitted.told


def _clips_and_wishes(
    store: FeatureStore, rows: np.ndarray, recipe: Recipe, paired: bool, world_size: int
) -> dict[str, Any]:
    """Arguments of `find_shortage` and `fit_to_clips`: the rows' clips, and what is set."""
    numbers = store.group_numbers
    return {
        "labels": store.labels[rows],
        "groups": np.asarray(store.video_ids)[rows],
        "batch_size": recipe.learning.batch_size,
        "heldout_fraction": recipe.train.heldout_fraction,
        "seed": recipe.stream_seed,
        "paired": paired,
        "world_size": world_size,
        "early_stopping_epochs": recipe.learning.early_stopping_epochs,
        "heldout_by": recipe.train.heldout_by,
        "origins": None if numbers is None else numbers[rows],
    }


def count_held_out(store: FeatureStore, rows: np.ndarray, recipe: Recipe) -> int:
    """How many of the training rows `rows` the recipe holds out."""
    return len(_hold_out(store, rows, recipe)[1])


def _hold_out(
    store: FeatureStore, rows: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Of the training rows `rows` those that are trained on, and those held out."""
    numbers = store.group_numbers
    return hold_out(
        rows,
        store.labels[rows],
        np.asarray(store.video_ids)[rows],
        fraction=recipe.train.heldout_fraction,
        seed=recipe.stream_seed,
        by=recipe.train.heldout_by,
        origins=None if numbers is None else numbers[rows],
    )


def require_held_out(store: FeatureStore, rows: np.ndarray, recipe: Recipe) -> None:
    """Refuse a recipe, as `fit_recipe` made it, without clips that settings are chosen by.

    Raises:
        SettingsError: None of the rows is held out, or no epoch would be judged by them.
    """
    if not recipe.train.num_epochs:
        raise SettingsError(
            "train.num_epochs is 0: there is no epoch to choose settings by; set it to at least 1"
        )
    if not count_held_out(store, rows, recipe):
        _, first = np.unique(np.asarray(store.video_ids)[rows], return_index=True)
        _, counts = np.unique(store.labels[rows][first], return_counts=True)
        fewest = int(counts.min())
        cure = "get at least two clips of each class"
        if fewest > 1:
            enough = math.ceil(100 / fewest) / 100
            cure = (
                f"set it to {enough:g}, which holds out one of the {fewest} clips that the "
                "smallest class has, or get more clips"
            )
        raise SettingsError(
            f"train.heldout_fraction holds out too few of {len(first)} training clips to choose "
            "settings by, which is never done by the test split; expected one of each of "
            f"{len(counts)} classes: {cure}"
        )


def check_clips(
    store: FeatureStore,
    rows: np.ndarray,
    recipe: Recipe,
    *,
    paired: bool,
    world_size: int = 1,
) -> None:
    """Refuse training rows that are too few, or whose classes are not the store's.

    Args:
        rows: Those of the training split.
        paired: Whether an iteration takes two disjoint batches, as UDL's does.
        world_size: Processes that train together; the batch size is of each.

    Raises:
        SettingsError: They are. With early stopping also where no clip would be held out; with
            UDL's batches of different groups where there are not two.
    """
    labels = store.labels[rows]
    num_classes = len(store.class_names)
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if len(strange):
        raise SettingsError(
            f"{store.location}: clip {store.video_ids[rows[labels == strange[0]][0]]} is of class "
            f"{strange[0]}, and the store names {num_classes} classes; the annotations and their "
            "list of classes disagree: correct them, then `python cli.py prepare` and `extract`"
        )
    shortage = find_shortage(**_clips_and_wishes(store, rows, recipe, paired, world_size))
    if shortage:
        raise SettingsError(shortage)
    if paired and recipe.udl.validation_by == "group":
        numbers = store.group_numbers
        kept = _hold_out(store, rows, recipe)[0]
        require_groups(None if numbers is None else numbers[kept])


def warn_of_groups(store: FeatureStore, recipe: Recipe) -> None:
    """Say which clips that are evaluated or held out share groups with those that are trained on.

    Args:
        recipe: Of which counts what is held out.
    """
    for line in tell_shared_groups(store.video_ids, store.splits.tolist(), store.groups):
        console.print(line, soft_wrap=True)
    rows = store.rows_of_split("train")
    clips = np.asarray(store.video_ids)[rows]
    numbers = store.group_numbers
    warn_of_held_out(store.labels[rows], clips, None if numbers is None else numbers[rows], recipe)


def warn_of_held_out(
    labels: np.ndarray, groups: np.ndarray, origins: np.ndarray | None, recipe: Recipe
) -> None:
    """Say where clips are held out singly although they are of groups; arguments as `hold_out`."""
    doubt = doubt_held_out(
        labels,
        groups,
        origins,
        fraction=recipe.train.heldout_fraction,
        seed=recipe.stream_seed,
        by=recipe.train.heldout_by,
    )
    if doubt:
        console.print(doubt, soft_wrap=True)


def check_head(head: nn.Module, feed: FeatureFeed) -> None:
    """Refuse a head that is made for other maps or classes than `feed` serves.

    Raises:
        SettingsError: Its channels or classes are other ones.
    """
    config = getattr(head, "config", {})
    found = config.get("in_channels"), config.get("num_classes")
    expected = feed.map_shape[0], feed.num_classes
    for name, has, wants in zip(("channels", "classes"), found, expected, strict=True):
        if has is not None and has != wants:
            raise SettingsError(
                f"{type(head).__name__} is made for {has} {name}, and the store's maps have "
                f"{wants}; build the head for this store"
            )
