"""The trainings of a stage: common options, the processes that share them, checkpoints, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings.learning import TrainSettings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import save_head
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    hold_together,
    joined_processes,
    remove_checkpoints,
    stop_on_sigterm,
    train_head,
)
from stages import places
from stages.training_options import OF_THE_RUN


class Trainings:
    """Trains heads with common `options` and saves them below outputs/heads.

    Attributes:
        made_of: What every head's file says of its making.
    """

    def __init__(
        self, processes: Processes, saved: CheckpointOptions, options: dict[str, Any]
    ) -> None:
        self.processes, self.saved = processes, saved
        self.options, self.made_of = options, dict[str, Any]()

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
            write_json(places.HEADS / name / "history.json", sign({"epochs": history}))
            save_head(places.HEADS / name, head, self.made_of | {"title": title})


@contextmanager
def open_trainings(settings: TrainSettings, options: dict[str, Any]) -> Iterator[Trainings]:
    """Join processes, heed SIGTERM; when all went well, delete the checkpoints unless kept.

    Raises:
        BusyError: Another process trains into outputs/heads, or evaluates what is there.
    """
    options = settings.model_dump(exclude=OF_THE_RUN) | options
    with (
        joined_processes(settings.device, settings.devices) as processes,
        hold_together(processes, places.HEADS, "train-head"),
        stop_on_sigterm(settings.requeue_status) as stop,
    ):
        every = settings.checkpoint_every_batches
        saved = CheckpointOptions(places.CHECKPOINTS, every_batches=every, stop=stop)
        yield Trainings(processes, saved, options)
        if settings.keep_checkpoints:
            console.print(f"checkpoints: {', '.join(map(str, saved.used))}")
        elif processes.is_first:
            remove_checkpoints(saved)
