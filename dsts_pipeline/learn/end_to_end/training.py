"""Fine-tuning: the training of a backbone and its head on videos, epoch by epoch.

Enters: an `EndToEnd` model, a `VideoFeed` over the training split, options. Leaves: the model,
trained in place and in evaluation mode, and a history like `train_head`'s. Held-out clips, early
stopping, averages, checkpoints and several processes are those of the training on maps.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.learn.end_to_end.model import EndToEnd
from dsts_pipeline.learn.end_to_end.options import FinetuneOptions
from dsts_pipeline.learn.end_to_end.steps import JointObjective, JointStepper
from dsts_pipeline.learn.end_to_end.videos import VideoFeed
from dsts_pipeline.learn.loop import OnEpoch, run_training
from dsts_pipeline.learn.parts import downstream_of, upstream_of
from dsts_pipeline.learn.passes import Asking, MapPass, make_passes
from dsts_pipeline.learn.precision import LossScale
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.resume import CheckpointOptions
from dsts_pipeline.learn.training import Training

T = TypeVar("T")


class Finetuned(NamedTuple):
    """What a fine-tuning leaves beside the model: its history, the rows of held-out clips."""

    history: list[dict[str, Any]]
    heldout: np.ndarray


def finetune(
    model: EndToEnd,
    feed: VideoFeed,
    *,
    on_epoch: OnEpoch | None = None,
    title: str = "finetune",
    processes: Processes = ALONE,
    checkpoints: CheckpointOptions | None = None,
    **options: Any,
) -> Finetuned:
    """Train backbone and head together; with a held-out part, keep the best epoch's values.

    The model as it comes takes part in that choice, so it does not end below its start on the
    held-out clips. Resumes bit for bit, as `train_head` does.

    Args:
        feed: All training clips; held-out clips are taken from them, the same ones as `train_head`
            takes for the same seed and fraction.
        options: Those of `FinetuneOptions`.

    Returns:
        The history, as `train_head`'s, and the rows of the held-out clips.

    Raises:
        SettingsError: Too few clips for UDL's pairs of batches, or the training diverged.
        DataError: Too many clips cannot be decoded.
        CheckpointError: The checkpoint is damaged or in use.
        TrainingStopped: A stop was asked for; the training is saved.
    """
    training = JointTraining(model, feed, FinetuneOptions(**options), processes)
    history = run_training(training, checkpoints, title, on_epoch)
    return Finetuned(history, training.heldout)


class JointTraining(Training):
    """What one `finetune` call holds between batches."""

    options: FinetuneOptions
    feed: VideoFeed

    def __init__(
        self, model: EndToEnd, feed: VideoFeed, options: FinetuneOptions, processes: Processes
    ) -> None:
        self.model = model
        super().__init__(model, feed, options, processes)

    def make_passes(self, asking: Asking[T]) -> T:
        """Make passes over the clips in their plain views."""
        size = self.options.evaluation_batch
        return make_passes(asking, self.feed.plain, self.processes.device, batch_size=size)

    def finish(self) -> Asking[None]:
        """Put the best values back, in evaluation mode; their statistics are with them."""
        if self.best is not None:
            self.model.load_state_dict(self.best.values)
        elif self.average is not None:
            self.average.apply()
            yield from self._recalibrate(self.rows)
        self.model.eval()

    def begin_epoch(self) -> None:
        """Every epoch has views of its own."""
        self.feed.epoch = self.epoch
        super().begin_epoch()

    def _stepper(self) -> JointStepper:
        options, model = self.options, self.model
        upstream, downstream = upstream_of(model), downstream_of(model)
        return JointStepper(
            JointObjective(
                model,
                options.label_smoothing,
                options.balance_weight,
                options.precision,
                self.processes,
            ),
            options.optimizer_of(upstream, options.rates_of(model, upstream)),
            options.optimizer_of(downstream, options.rates_of(model, downstream)),
            LossScale.for_precision(options.precision),
            part_size=options.part_size,
            method=options.udl_method,
            redraw=options.redraw_noise,
            generator=torch.Generator(self.processes.device),
            inner_step=options.inner_step,
        )

    def _recalibrate(self, rows: np.ndarray) -> Asking[None]:
        """Choice: maps of the first `recompute_clips` clips are computed once and held in memory
        for the passes; on maps from a store all clips serve at the end."""
        if not self.options.recompute_statistics or self.dsts is None:
            return
        maps: list[Tensor] = []

        @torch.no_grad()
        def collect(batch: FeatureBatch) -> None:
            maps.append(self.model.maps(batch.maps).cpu())

        was_training = self.model.training
        self.model.eval()
        yield MapPass(rows[: self.options.recompute_clips], collect)
        self.model.train(was_training)
        device = self.processes.device
        recalibrate(self.dsts, lambda: (part.to(device) for part in maps))
