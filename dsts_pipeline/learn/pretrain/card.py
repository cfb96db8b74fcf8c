"""The model card beside pretrained weights: how they were made and what they reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.clips.stick_diving.targets import TARGET_NAMES
from dsts_pipeline.learn.pretrain.pool import PoolRecipe
from dsts_pipeline.learn.pretrain.training import EpochFigures, TrainingRecipe

_TEXT = """# {name}: the embedded backbone

Written by `python cli.py pretrain`; nothing here was typed in.

A small video recognizer from mmaction2's registry, trained on rendered stick dives. It is to the
embedded data set what a fine-tuned recognizer is to a real one: the baseline whose feature map is
cached and frozen. It is of no use on other videos.

- Parameters: {num_parameters:,}, with its classifier. Kernels are stored as float16.
- Input: {pool.num_frames} frames, rendered at {pool.render_px} px, H.264, decoded and scaled to
  {pool.input_px} px, as in the pipeline.
- Training clips: {pool.num_clips:,} of stream `{pool.stream}`, seed {pool.seed}, difficulty
  {pool.difficulty:g}, renderer version {pool.renderer_version}. Streams are named, so no clip of a
  data set's train or test split, whatever its seed, is among them.
- Held-out clips, for the figures below only: {num_heldout:,} of stream `{heldout_stream}`.
- Augmentation: mirroring, shifts of 3 px, brightness.
- Phase 1, {training.pose_epochs} epoch(s): pose of every frame from the spatially averaged map.
  Targets: {targets}.
- Phase 2, {training.class_epochs} epoch(s): the 48 classes from the globally averaged map by one
  linear layer; the pose loss stays on with weight {training.pose_weight:g}.
- AdamW, one-cycle learning rate up to {training.learning_rate:g}, batch {training.batch_size},
  seed {training.seed}, bfloat16 autocast; figures in float32.

| epoch | phase | training loss | held-out pose error | held-out top-1 |
|---|---|---|---|---|
{rows}
"""


def write_card(
    path: Path,
    name: str,
    recognizer: nn.Module,
    pool: PoolRecipe,
    heldout: PoolRecipe,
    training: TrainingRecipe,
    history: Sequence[EpochFigures],
) -> None:
    """Write the card as Markdown."""
    rows = "\n".join(
        f"| {row.epoch + 1} | {row.phase} | {row.train_loss:.3f} | {row.heldout_pose_error:.3f} "
        f"| {row.heldout_top1:.1%} |"
        for row in history
    )
    text = _TEXT.format(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in recognizer.parameters()),
        pool=pool,
        num_heldout=heldout.num_clips,
        heldout_stream=heldout.stream,
        training=training,
        targets=", ".join(TARGET_NAMES),
        rows=rows,
    )
    write_atomic(path, text.encode())
