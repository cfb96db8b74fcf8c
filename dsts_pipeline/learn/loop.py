"""The training of a head on cached maps, epoch by epoch, from wherever it was stopped.

Enters: a head, a `FeatureFeed` over the training split, options. Leaves: the head, trained in
place and in evaluation mode, and a history of plain dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dsts_pipeline.base.progress import console, track
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn.checks import check_head
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.resume import CheckpointOptions, Keeper
from dsts_pipeline.learn.training import Training

OnEpoch = Callable[[dict[str, Any]], None]


def train_head(
    head: nn.Module,
    feed: FeatureFeed,
    *,
    on_epoch: OnEpoch | None = None,
    title: str = "train",
    processes: Processes = ALONE,
    checkpoints: CheckpointOptions | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train `head` on the clips of `feed`; with a held-out part, keep the best epoch's values.

    The untrained head takes part in that choice, so a head that starts at its baseline does not
    end below it on the held-out clips.

    With `checkpoints`, a training that was stopped in any way goes on from its last checkpoint and
    ends with the same weights, bit for bit on the same machine. The checkpoint of a finished
    training stays until `remove_checkpoints`: asked again, it comes to its end at once.

    Args:
        feed: All training rows; held-out clips are taken from them.
        on_epoch: Called with each entry of the history, those of before a stop included.
        title: What the progress bar says.
        processes: Those that train together; each calls this with equal arguments.
        checkpoints: Where and how often to save; None for never.
        options: Those of `TrainingOptions`.

    Returns:
        Per epoch: epoch, train_loss, train_accuracy, heldout_loss and heldout_accuracy (where
        clips are held out), best (whether it is the best so far), seconds, and for a `DSTSHead`
        layers (see `inspection.summarize_layer`).

    Raises:
        SettingsError: The head is made for other maps or classes, too few clips for UDL's pairs of
            batches, or the training diverged.
        CheckpointError: The checkpoint is damaged or in use.
        TrainingStopped: A stop was asked for; the training is saved.
    """
    check_head(head, feed)
    training = Training(head, feed, TrainingOptions(**options), processes)
    return run_training(training, checkpoints, title, on_epoch)


def run_training(
    training: Training,
    checkpoints: CheckpointOptions | None,
    title: str,
    on_epoch: OnEpoch | None = None,
) -> list[dict[str, Any]]:
    """Bring `training` to its end from wherever its checkpoint is; returns its history.

    Raises:
        SettingsError, CheckpointError, TrainingStopped: See `train_head`.
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
    num_epochs, num_clips = training.options.num_epochs, training.sampler.num_clips
    done = len(training.history) * num_clips + training.tally.num_clips
    with track(title, num_epochs * num_clips, done=done) as progress:
        while not training.is_done:
            on_epoch(training.run_epoch(progress, keeper.after_batch))
            keeper.after_epoch()
