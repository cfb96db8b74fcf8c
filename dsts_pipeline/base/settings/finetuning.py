"""Settings of training backbone and head together on videos (`finetune`, `pretrain-backbone`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsts_pipeline.base.settings.extraction import AugmentationSettings
from dsts_pipeline.base.settings.sections import Section

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class FinetuneSettings(Section):
    """How a backbone trains, with a head that was trained on its cached maps or a linear one.

    Input, decoding and limits are those of `backbone`, UDL's own options those of `udl`; the same
    clips are held out as in `train` (`train.heldout_fraction`). `inner_step`: what UDL's simulated
    step moves, the "head" alone, so that each map is computed once, or "all" (the paper's text).
    `frozen_stages` counts from the pixels, `frozen` names beginnings of parameters. The backbone
    learns at `backbone_learning_rate_factor` times the learning rate, each stage before its last
    one at `layer_decay` times that of the next. `backbone_norms`: "frozen" keeps the statistics of
    batch norms; `backbone_dropout` switches on dropout and stochastic depth. `recompute`:
    activation checkpointing. `evaluate_test` also scores the test split, before and after.
    """

    head: str = "outputs/heads/dsts"
    num_epochs: int = Field(1, ge=0)
    batch_size: int = Field(32, ge=1)
    part_size: int | None = Field(None, ge=1)  # gradient accumulation: clips at a time
    inner_step: Literal["head", "all"] = "head"
    frozen_stages: int = Field(3, ge=0)
    frozen: tuple[str, ...] = ()
    recompute: bool = False
    backbone_norms: Literal["frozen", "batch"] = "frozen"
    backbone_dropout: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-4, gt=0.0)
    backbone_learning_rate_factor: float = Field(1.0, ge=0.0)
    layer_decay: float = Field(1.0, gt=0.0, le=1.0)
    classifier_learning_rate_factor: float = Field(1.0, ge=0.0)
    scoring_learning_rate_factor: float = Field(1.0, ge=0.0)
    gate_learning_rate_factor: float = Field(1.0, ge=0.0)
    schedule: Literal["one_cycle", "cosine", "steps", "constant"] = "one_cycle"
    step_milestones: tuple[Share, ...] = (0.5, 0.8333)
    step_factor: float = Field(0.1, gt=0.0, le=1.0)
    warmup_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.05, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    clip_norm: float | None = Field(None, gt=0.0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    balance_weight: float = Field(0.0, ge=0.0)
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    max_loss: float = Field(1e6, gt=0.0)
    recompute_statistics: bool = True
    recompute_clips: int = Field(512, ge=1)  # their maps are held in memory, at each epoch
    early_stopping_epochs: int | None = Field(None, ge=1)
    augmentation: AugmentationSettings = AugmentationSettings()
    evaluation_batch: int = Field(32, ge=1)
    evaluate_test: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1)
    checkpoint_every_batches: int | None = Field(50, ge=1)
    keep_checkpoints: bool = False
    requeue_status: int = Field(99, ge=1, le=255)
