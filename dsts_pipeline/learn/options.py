"""How a head is trained, as one frozen record of plain values, and which settings decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import FeedSettings, TrainSettings, UdlSettings
from dsts_pipeline.feed.epochs import SHARD_WINDOW
from dsts_pipeline.feed.samplers import Order
from dsts_pipeline.learn.optimizers import (
    OptimizerName,
    Precision,
    ScheduledOptimizer,
    ScheduleName,
)
from dsts_pipeline.learn.udl import Method, check_method

# Settings of how a training is run, which decide nothing about its result.
OF_THE_RUN = {"device", "devices", "checkpoint_every_batches", "keep_checkpoints"}
OF_THE_RUN |= {"requeue_status", "tensorboard"}


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `train_head`.

    Args:
        num_epochs: Passes over the clips that are not held out; 0 leaves the head as it is.
        batch_size: Clips per batch; UDL takes two batches an iteration.
        seed: Of noise and mixup; the head's first values are the caller's.
        data_seed: Of the order of batches and of what is held out; None is `seed`. Trainings of
            different seeds and one data seed go through the same batches.
        udl_method: "exact", "forward_over_reverse" or "finite_difference"; see `products`.
        udl: Whether a `DSTSHead` that has upstream parameters is trained by UDL.
        inner_learning_rate: alpha of UDL's simulated step; None is d's current learning rate.
        redraw_noise: Whether UDL's step 3 draws new noise.
        learning_rate: Of d at the schedule's peak; the factors scale it for the classifier, the
            scoring kernels and the gate logits.
        clip_norm: Largest norm of u's and of d's gradient; None for no clipping.
        part_size: Samples gone through at a time (gradient accumulation); None for the batch.
        precision: Type of the forward pass; "float16" scales the loss.
        order: "random", "shard" or "sequential"; see `feed.EpochSampler`.
        shard_window: Shards whose clips are mixed in the order "shard".
        class_balanced: Whether an epoch draws every class equally often.
        final_noise: Factor on the routing's and the gates' noise at the end of the training, which
            it nears linearly from 1; 1 (noise stays as it is) is the paper.
        balance_weight: Weight of the load-balancing loss; 0 is the paper.
        heldout_fraction: Share of the clips held out to choose the best epoch by.
        recompute_statistics: Whether norms get the statistics of noise-free passes before every
            evaluation and at the end.
        recompute_clips: How many clips serve for that at each epoch.
        recompute_clips_at_end: How many at the end; None for all.
        step_milestones, step_factor: Of the schedule "steps": shares of the training at which the
            learning rate is multiplied by the factor.
        mixup_alpha: Of mixup on feature maps; 0 for none. See `mixup`.
        ema_decay: Of the moving average of the weights that is evaluated and kept; None for none.
        early_stopping_epochs: The training ends after so many epochs in a row that were not the
            best on the held-out clips; None for never.
        max_loss: A loss above it ends the training as diverged.
    """

    section: ClassVar[str] = "train"  # of the settings, for messages
    num_epochs: int
    batch_size: int = 32
    seed: int = 0
    data_seed: int | None = None
    udl: bool = True
    udl_method: Method = "exact"
    inner_learning_rate: float | None = None
    redraw_noise: bool = False
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 2e-3
    classifier_learning_rate_factor: float = 1.0
    scoring_learning_rate_factor: float = 1.0
    gate_learning_rate_factor: float = 1.0
    schedule: ScheduleName = "one_cycle"
    warmup_fraction: float = 0.2
    weight_decay: float = 0.05
    momentum: float = 0.9
    clip_norm: float | None = None
    part_size: int | None = None
    precision: Precision = "float32"
    order: Order = "random"
    shard_window: int = SHARD_WINDOW
    class_balanced: bool = False
    label_smoothing: float = 0.0
    final_noise: float = 1.0
    balance_weight: float = 0.0
    heldout_fraction: float = 0.0
    recompute_statistics: bool = True
    recompute_clips: int = 512
    recompute_clips_at_end: int | None = None
    step_milestones: tuple[float, ...] = (0.5, 0.8333)
    step_factor: float = 0.1
    mixup_alpha: float = 0.0
    ema_decay: float | None = None
    early_stopping_epochs: int | None = None
    max_loss: float = 1e6

    def __post_init__(self) -> None:
        check_method(self.udl_method)
        if self.early_stopping_epochs is not None and not self.heldout_fraction:
            raise SettingsError(
                f"early_stopping_epochs is {self.early_stopping_epochs} and heldout_fraction 0: "
                "there is nothing to judge an epoch by; set train.heldout_fraction, such as 0.1"
            )

    @property
    def stream_seed(self) -> int:
        """The seed of the order of batches and of what is held out."""
        return self.seed if self.data_seed is None else self.data_seed

    def noise_scale_at(self, progress: float) -> float:
        """Factor on the noise at `progress` in [0, 1] of the training."""
        return 1.0 + progress * (self.final_noise - 1.0)

    def learning_rate_of(self, name: str) -> float:
        """Peak learning rate of the parameter `name`."""
        factor = 1.0
        if name.endswith("scoring_kernel"):
            factor = self.scoring_learning_rate_factor
        elif name.endswith("gate_logits"):
            factor = self.gate_learning_rate_factor
        elif name.startswith("classifier."):
            factor = self.classifier_learning_rate_factor
        return self.learning_rate * factor

    def optimizer_of(
        self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float] | None = None
    ) -> ScheduledOptimizer:
        """An optimiser of `parameters` by these options; `rates` are their peak learning rates."""
        return ScheduledOptimizer(
            parameters,
            rates or {name: self.learning_rate_of(name) for name in parameters},
            name=self.optimizer,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            schedule=self.schedule,
            warmup_fraction=self.warmup_fraction,
            clip_norm=self.clip_norm,
            step_milestones=self.step_milestones,
            step_factor=self.step_factor,
        )


def options_of_feed(feed: FeedSettings) -> dict[str, Any]:
    """What of the settings of reading decides a training."""
    return feed.model_dump(include={"order", "shard_window", "class_balanced"})


def dsts_options(
    train: TrainSettings, udl: UdlSettings, feed: FeedSettings, seed: int
) -> dict[str, Any]:
    """What `train_head` is given for the DSTS head, but for processes and checkpoints."""
    options: dict[str, Any] = train.model_dump(exclude=OF_THE_RUN)
    options |= {"seed": seed, **options_of_feed(feed)}
    options |= {"udl": udl.enabled, "udl_method": udl.method}
    return options | udl.model_dump(include={"redraw_noise", "inner_learning_rate"})
