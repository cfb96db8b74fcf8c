"""Settings of the head and of its training; defaults are what learns on the embedded data set.

Where a default departs from the paper's text, the value that follows the paper stands beside it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dsts_pipeline.base.settings.sections import Section

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class HeadSettings(Section):
    """The DSTS head; the names are those of `DSTSHead`'s arguments."""

    num_neurons: int = Field(10, ge=1)
    num_layers: int = Field(3, ge=0)
    width: int | None = Field(32, ge=1)  # paper: null
    synapse: bool = True
    specialization: Literal["gated", "fixed", "conv3d"] = "gated"
    impulse: Literal["sum", "mean", "standardized"] = "standardized"  # paper: sum
    impulse_spread: float = Field(20.0, gt=0.0)
    routing_gradient: Literal["dense", "selected"] = "selected"  # paper: dense
    norm_statistics: Literal["routed", "layer", "batch"] = "routed"
    impulse_gradient: Literal["map", "kernel"] = "map"
    shared_neuron: bool = False
    own_scale: float = Field(1.0, ge=0.0)
    layer_residual: bool = True  # paper: false
    skip: bool = True
    zero_start: bool = True  # paper: false
    temperature: float = Field(1.0, gt=0.0)
    gumbel_scale: float = Field(1.0, ge=0.0)
    gate_noise_scale: float = Field(1.0, ge=0.0)
    gate_init_std: float = Field(0.01, ge=0.0)
    take_over_classifier: bool = True  # the backbone's own, where it has one for these classes


class UdlSettings(Section):
    """Upstream-Downstream Learning; with `enabled: false` u and d share one ordinary step."""

    enabled: bool = True
    method: Literal["exact", "forward_over_reverse", "finite_difference"] = "exact"
    inner_learning_rate: float | None = Field(None, gt=0.0)  # null: d's current learning rate
    redraw_noise: bool = False

    @field_validator("method", mode="before")
    @classmethod
    def _refuse_first_order(cls, value: object) -> object:
        if value == "first_order":
            raise ValueError(
                "first_order has no effect: upstream parameters enter UDL's step 2 only through "
                "the simulated step, so its gradient without the second-order term is zero; use "
                "exact, or set udl.enabled to false"
            )
        return value


class TrainSettings(Section):
    """Optimisers, schedules and what is kept of a training."""

    num_epochs: int = Field(12, ge=0)
    batch_size: int = Field(32, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(2e-3, gt=0.0)
    classifier_learning_rate_factor: float = Field(5.0, ge=0.0)
    scoring_learning_rate_factor: float = Field(1.0, ge=0.0)
    gate_learning_rate_factor: float = Field(20.0, ge=0.0)
    schedule: Literal["one_cycle", "cosine", "steps", "constant"] = "one_cycle"
    step_milestones: tuple[Share, ...] = (0.5, 0.8333)  # of "steps": shares of the training
    step_factor: float = Field(0.1, gt=0.0, le=1.0)
    warmup_fraction: float = Field(0.2, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.05, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    clip_norm: float | None = Field(None, gt=0.0)
    part_size: int | None = Field(None, ge=1)  # gradient accumulation: samples at a time
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    mixup_alpha: float = Field(0.0, ge=0.0)  # 0: no mixup
    final_noise: float = Field(1.0, ge=0.0)  # factor on routing's and gates' noise, linear from 1
    balance_weight: float = Field(0.0, ge=0.0)
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    max_loss: float = Field(1e6, gt=0.0)  # above it a training counts as diverged
    heldout_fraction: float = Field(0.1, ge=0.0, lt=0.9)  # of train, to choose the epoch by
    data_seed: int | None = Field(None, ge=0)  # of batches and held-out clips; null: the run's seed
    recompute_statistics: bool = True
    recompute_clips: int = Field(512, ge=1)  # at each epoch
    recompute_clips_at_end: int | None = Field(None, ge=1)  # null: all training clips
    early_stopping_epochs: int | None = Field(None, ge=1)  # so many without a best one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1)  # processes on this machine; `torchrun` overrules it
    checkpoint_every_batches: int | None = Field(200, ge=1)  # and after every epoch
    keep_checkpoints: bool = False  # also after the end
    requeue_status: int = Field(99, ge=1, le=255)  # exit status after SIGTERM
    tensorboard: bool = False
