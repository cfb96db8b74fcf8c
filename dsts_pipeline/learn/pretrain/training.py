"""Training an embedded recognizer: first on what moves in each frame, then on the classes.

Phase 1 regresses the targets of every frame (the diver's pose; where hand and objects are) from the
spatially averaged map: a quick, strong signal. Phase 2 trains what the paper calls the baseline:
globally averaged map, one linear classifier; the first loss stays on with a small weight. The
backbone then freezes for good. Without phase 2 it has never been told a class, and its recognizer's
classifier is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dsts_pipeline.base.progress import console, track
from dsts_pipeline.extract.models.backbones import normalize_frames
from dsts_pipeline.extract.models.build import build_recognizer
from dsts_pipeline.learn.pretrain.pool import Pool
from dsts_pipeline.learn.pretrain.subjects import Subject

_SHIFT_PX = 3


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch of pretraining reached on held-out rendered clips."""

    phase: str
    epoch: int
    train_loss: float
    heldout_error: float
    heldout_top1: float


@dataclass(frozen=True)
class TrainingRecipe:
    """How the recognizer is trained.

    Attributes:
        pose_epochs, class_epochs: Passes over the clips in each phase.
        batch_size, learning_rate: AdamW under a one-cycle schedule over both phases.
        pose_weight: Weight of the pose loss in phase 2.
        seed: Of initial weights, order and augmentation.
    """

    pose_epochs: int
    class_epochs: int
    batch_size: int
    learning_rate: float
    pose_weight: float
    seed: int


class PoseReader(nn.Module):
    """Linear read-out of every frame's targets from a map; thrown away after pretraining."""

    def __init__(self, channels: int, frames_per_step: int, num_targets: int) -> None:
        super().__init__()
        self._num_targets = num_targets
        self.linear = nn.Linear(channels, frames_per_step * num_targets)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, T', H, W] -> targets [B, T' * frames_per_step, P]."""
        steps = maps.mean(dim=(3, 4)).transpose(1, 2)
        return self.linear(steps).flatten(1).unflatten(1, (-1, self._num_targets))


def pretrain_recognizer(
    name: str, train: Pool, heldout: Pool, recipe: TrainingRecipe
) -> tuple[nn.Module, list[EpochFigures]]:
    """Train the recognizer of preset `name`; return it with the figures of every epoch.

    Args:
        train, heldout: Rendered clips; `heldout` only measures.
    """
    classes = train.subject.num_classes
    recognizer: Any = build_recognizer(name, num_classes=classes, seed=recipe.seed)  # no types
    recognizer.backbone.to(memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(recipe.seed)
    reader = _build_reader(recognizer, train, recipe.seed)
    parameters = [*recognizer.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.02)
    num_epochs = recipe.pose_epochs + recipe.class_epochs
    num_steps = len(train) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=num_epochs * num_steps, pct_start=0.15
    )
    history = []
    for epoch in range(num_epochs):
        phase = "targets" if epoch < recipe.pose_epochs else "classes"
        weights = (1.0, 0.0) if phase == "targets" else (recipe.pose_weight, 1.0)
        recognizer.train()
        reader.train()
        total = 0.0
        title = f"Pretraining epoch {epoch + 1}/{num_epochs} ({phase})"
        with track(title, num_steps * recipe.batch_size) as progress:
            for batch in _batches(train, recipe.batch_size, generator):
                loss = _loss(recognizer, reader, batch, weights)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                progress.advance(recipe.batch_size)
        measured = _measure(recognizer, reader, heldout)
        history.append(EpochFigures(phase, epoch, total / num_steps, *measured))
        console.print(history[-1])
    if recipe.class_epochs == 0:
        recognizer.cls_head = None
    return recognizer, history


def _build_reader(recognizer: Any, pool: Pool, seed: int) -> PoseReader:
    """A pose reader that fits the recognizer's map of the pool's clips."""
    with torch.no_grad():
        maps = recognizer.backbone(normalize_frames(torch.from_numpy(pool.frames[:1])))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames_per_step = pool.frames.shape[1] // maps.shape[2]
        return PoseReader(maps.shape[1], frames_per_step, pool.targets.shape[2])


def _batches(
    pool: Pool, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch of augmented batches: frames uint8, pose targets, labels."""
    order = torch.randperm(len(pool), generator=generator).numpy()
    for start in range(0, len(pool) - batch_size + 1, batch_size):
        rows = np.sort(order[start : start + batch_size])
        frames = torch.from_numpy(pool.frames[rows])
        targets = torch.from_numpy(pool.targets[rows])
        labels = torch.from_numpy(pool.labels[rows])
        yield augment_clips(frames, targets, labels, pool.subject, generator)


def augment_clips(
    frames: Tensor,
    targets: Tensor,
    labels: Tensor,
    subject: Subject,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror half of the clips, shift each by a few pixels (edges repeat), change brightness.

    A mirrored clip gets the targets and the label of what is then seen.
    """
    mirrored = torch.rand(len(frames), generator=generator) < 0.5
    signs = torch.from_numpy(subject.mirror_signs)
    flipped = torch.from_numpy(subject.flipped)[labels]
    size = frames.shape[2]
    places = torch.arange(size)
    out = torch.empty_like(frames)
    shifts = torch.randint(-_SHIFT_PX, _SHIFT_PX + 1, (len(frames), 2), generator=generator)
    light = torch.randint(-20, 21, (len(frames),), generator=generator)
    for n, (dy, dx) in enumerate(shifts.tolist()):
        columns = (places + dx).clamp(0, size - 1)
        rows = (places + dy).clamp(0, size - 1)
        clip = frames[n][:, rows][:, :, columns.flip(0) if mirrored[n] else columns]
        out[n] = (clip.to(torch.int16) + light[n]).clamp_(0, 255).to(torch.uint8)
    turned = torch.where(mirrored[:, None, None], targets * signs, targets)
    return out, turned, torch.where(mirrored, flipped, labels)


def precision() -> str:
    """What training computes in: "bfloat16" where the processor has it, else "float32".

    Without AVX-512 a step in bfloat16 took twenty times as long as one in float32.
    """
    return "bfloat16" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "float32"


def _loss(
    recognizer: Any,
    reader: PoseReader,
    batch: tuple[Tensor, Tensor, Tensor],
    weights: tuple[float, float],
) -> Tensor:
    frames, targets, labels = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bfloat16"):
        maps = recognizer.backbone(normalize_frames(frames))
    maps = maps.float()
    pose = functional.smooth_l1_loss(reader(maps), targets, beta=0.2)
    classes = functional.cross_entropy(recognizer.cls_head(maps), labels)
    return weights[0] * pose + weights[1] * classes


@torch.inference_mode()
def _measure(recognizer: Any, reader: PoseReader, pool: Pool) -> tuple[float, float]:
    """Mean absolute error of targets and top-1 on `pool`, in float32 as extraction computes."""
    recognizer.eval()
    reader.eval()
    errors, hits = 0.0, 0
    for start in range(0, len(pool), 64):
        rows = slice(start, start + 64)
        maps = recognizer.backbone(normalize_frames(torch.from_numpy(pool.frames[rows])))
        targets = torch.from_numpy(pool.targets[rows])
        errors += float((reader(maps) - targets).abs().mean(dim=(1, 2)).sum())
        labels = torch.from_numpy(pool.labels[rows])
        hits += int((recognizer.cls_head(maps).argmax(1) == labels).sum())
    return errors / len(pool), hits / len(pool)
