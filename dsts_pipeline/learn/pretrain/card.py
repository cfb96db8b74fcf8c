"""The model card beside pretrained weights: how they were made and what they reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.learn.pretrain.pool import PoolRecipe
from dsts_pipeline.learn.pretrain.training import EpochFigures, TrainingRecipe, precision

_TEXT = """# {name}: {title}

Written by `python cli.py pretrain`; nothing here was typed in.

A small video recognizer from mmaction2's registry, trained on rendered {subject.title}. {role}
It is of no use on other videos.

- Parameters: {num_parameters:,}{classifier}. Kernels are stored as float16.
- Input: {pool.num_frames} frames of {pool.video_frames}, rendered at {pool.render_px} px, encoded
  as the data set is, decoded and scaled to {pool.input_px} px, as in the pipeline.
- Training clips: {pool.num_clips:,} of stream `{pool.stream}`, seed {pool.seed}, difficulty
  {pool.difficulty:g}, renderer version {subject.version}. Streams are named, so no clip of a
  data set's train or test split, whatever its seed, is among them.
- Held-out clips, for the figures below only: {heldout.num_clips:,} of stream `{heldout.stream}`.
- Augmentation: mirroring, shifts of 3 px, brightness.
- Phase 1, {training.pose_epochs} epoch(s): what moves, in every frame, from the spatially averaged
  map. Targets: {targets}.
- Phase 2, {training.class_epochs} epoch(s): the {subject.num_classes} classes from the globally
  averaged map by one linear layer; the first loss stays on with weight {training.pose_weight:g}.
- AdamW, one-cycle learning rate up to {training.learning_rate:g}, batch {training.batch_size},
  seed {training.seed}, {precision}; figures in float32.

| epoch | phase | training loss | held-out error of targets | held-out top-1 |
|---|---|---|---|---|
{rows}
"""

_BASELINE = """It is to the
embedded data set what a fine-tuned recognizer is to a real one: the baseline whose feature map is
cached and frozen."""
_GENERIC = """It has
never been told a class: a head on its maps has to learn them all."""


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
        f"| {row.epoch + 1} | {row.phase} | {row.train_loss:.3f} | {row.heldout_error:.3f} "
        f"| {f'{row.heldout_top1:.1%}' if row.phase == 'classes' else ''} |"
        for row in history
    )
    knows_classes = training.class_epochs > 0
    text = _TEXT.format(
        name=name,
        title="the embedded backbone" if knows_classes else "a backbone without classes",
        role=_BASELINE if knows_classes else _GENERIC,
        num_parameters=sum(parameter.numel() for parameter in recognizer.parameters()),
        classifier=", with its classifier" if knows_classes else "",
        subject=pool.subject,
        pool=pool,
        heldout=heldout,
        training=training,
        precision=precision(),
        targets=", ".join(pool.subject.target_names),
        rows=rows,
    )
    write_atomic(path, text.encode())
