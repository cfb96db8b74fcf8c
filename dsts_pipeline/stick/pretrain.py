"""Training an embedded recognizer: first on what moves in each frame, then on the classes.

Phase 1 regresses the targets of every frame (the diver's pose; where hand and objects are) from the
spatially averaged map: a quick, strong signal. Phase 2 trains what the paper calls the baseline:
globally averaged map, one linear classifier; the first loss stays on with a small weight. The
backbone then freezes for good. Without phase 2 it has never been told a class, and its recognizer's
classifier is left out.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.files import sha256_json, write_atomic
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import PretrainSettings
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.backbones import normalize_frames
from dsts_pipeline.extract.build import build_recognizer
from dsts_pipeline.stick import RENDERERS, Renderer

# ---- the clips that it learns from ---------------------------------------------------------------
#
# Rendering costs more than a training step, so the clips are made once and read many times. A pool
# is a folder of .npz chunks, each written whole; an interrupted rendering goes on where it stopped.

_CHUNK_CLIPS = 96


@dataclass(frozen=True)
class PoolRecipe:
    """What decides the content of a pool.

    Attributes:
        renderer: "stick_diving" or "stick_something".
        stream: Name of the random stream; never the name of a split of the data set.
        num_clips: Clips, balanced over the classes.
        video_frames, num_frames: Frames that are rendered, and the evenly spaced ones of them that
            the backbone gets.
        render_px, input_px: Rendered size and size after decoding.
        difficulty, seed: As the renderer has them.
    """

    renderer: str
    stream: str
    num_clips: int
    video_frames: int
    num_frames: int
    render_px: int
    input_px: int
    difficulty: float
    seed: int


@dataclass(frozen=True)
class Pool:
    """Clips in memory.

    Attributes:
        frames: uint8 [n, T, H, W, 3].
        targets: What is regressed, float32 [n, T, P].
        labels: int64 [n].
        renderer: What drew them.
    """

    frames: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    renderer: Renderer

    def __len__(self) -> int:
        return len(self.labels)


def render_pool(
    folder: str | Path,
    recipe: PoolRecipe,
    *,
    num_workers: int = 1,
    chunk_clips: int = _CHUNK_CLIPS,
) -> Pool:
    """Render what is missing of the pool under `folder`, then load it whole.

    Memory: n * T * H * W * 3 bytes, that is 0.2 MB a clip at 16 frames of 64 px.

    Raises:
        ValueError: The stream is a split of the data set.
    """
    if recipe.stream in ("train", "test", "validation"):
        raise ValueError(f"stream {recipe.stream!r} is a split of the data set; use another name")
    renderer = RENDERERS[recipe.renderer]
    made_of = asdict(recipe) | {"num_clips": 0, "renderer_version": renderer.version}
    home = Path(folder) / f"{recipe.stream}-{sha256_json(made_of)[:12]}"
    starts = range(0, recipe.num_clips, chunk_clips)
    missing = [start for start in starts if not _chunk_path(home, start).exists()]
    if missing:
        count = len(missing)
        work = ([home] * count, [recipe] * count, missing, [chunk_clips] * count)
        with track(f"Rendering pool {recipe.stream}", count * chunk_clips) as progress:
            for _ in map_in_processes(_render_chunk, *work, num_workers=num_workers):
                progress.advance(chunk_clips)
    num_clips = recipe.num_clips
    num_frames = recipe.num_frames
    frames = np.empty((num_clips, num_frames, recipe.input_px, recipe.input_px, 3), np.uint8)
    targets = np.empty((num_clips, num_frames, len(renderer.target_names)), np.float32)
    labels = np.empty(num_clips, np.int64)
    for start in starts:
        with np.load(_chunk_path(home, start), allow_pickle=False) as chunk:
            for name, whole in (("frames", frames), ("targets", targets), ("labels", labels)):
                part = whole[start : start + chunk_clips]
                part[:] = chunk[name][: len(part)]
    return Pool(frames, targets, labels, renderer)


def _chunk_path(home: Path, start: int) -> Path:
    return home / f"clips-{start:07d}.npz"


def _render_chunk(home: Path, recipe: PoolRecipe, start: int, num_clips: int) -> None:
    """Clips as the data set would hold them, decoded as extraction decodes them."""
    renderer = RENDERERS[recipe.renderer]
    order = uniform_frames(recipe.video_frames, recipe.num_frames)
    numbers = range(start, start + num_clips)
    frames = []
    targets = []
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch) / "clip.video"
        for number in numbers:
            clip = renderer.draw(
                recipe.seed,
                recipe.stream,
                number,
                size_px=recipe.render_px,
                num_frames=recipe.video_frames,
                difficulty=recipe.difficulty,
            )
            video.write_bytes(renderer.encode(renderer.render(clip)))
            frames.append(decode_frames(video, order, size_px=recipe.input_px))
            targets.append(renderer.targets(clip)[order])
    labels = np.array(numbers) % len(renderer.class_names)
    buffer = io.BytesIO()
    np.savez(buffer, frames=np.stack(frames), targets=np.stack(targets), labels=labels)
    write_atomic(_chunk_path(home, start), buffer.getvalue())


# ---- training ------------------------------------------------------------------------------------

_SHIFT_PX = 3


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch of pretraining reached on held-out rendered clips."""

    phase: str
    epoch: int
    train_loss: float
    heldout_error: float
    heldout_top1: float


class TargetReader(nn.Module):
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
    name: str, train: Pool, heldout: Pool, settings: PretrainSettings
) -> tuple[nn.Module, list[EpochFigures]]:
    """Train the recognizer of preset `name`; return it with the figures of every epoch.

    AdamW under a one-cycle schedule over both phases, `settings.pose_epochs` and then
    `settings.class_epochs` passes over the clips.

    Args:
        train, heldout: Rendered clips; `heldout` only measures.
    """
    classes = len(train.renderer.class_names)
    recognizer: Any = build_recognizer(name, num_classes=classes, seed=settings.seed)  # no types
    recognizer.backbone.to(memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(settings.seed)
    reader = _build_reader(recognizer, train, settings.seed)
    parameters = [*recognizer.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.02)
    num_epochs = settings.pose_epochs + settings.class_epochs
    num_steps = len(train) // settings.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=num_epochs * num_steps, pct_start=0.15
    )
    history = []
    for epoch in range(num_epochs):
        phase = "targets" if epoch < settings.pose_epochs else "classes"
        weights = (1.0, 0.0) if phase == "targets" else (settings.pose_weight, 1.0)
        recognizer.train()
        reader.train()
        total = 0.0
        title = f"Pretraining epoch {epoch + 1}/{num_epochs} ({phase})"
        with track(title, num_steps * settings.batch_size) as progress:
            for batch in _batches(train, settings.batch_size, generator):
                loss = _loss(recognizer, reader, batch, weights)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                progress.advance(settings.batch_size)
        measured = _measure(recognizer, reader, heldout)
        history.append(EpochFigures(phase, epoch, total / num_steps, *measured))
        console.print(history[-1])
    if settings.class_epochs == 0:
        recognizer.cls_head = None
    return recognizer, history


def _build_reader(recognizer: Any, pool: Pool, seed: int) -> TargetReader:
    """A target reader that fits the recognizer's map of the pool's clips."""
    with torch.no_grad():
        maps = recognizer.backbone(normalize_frames(torch.from_numpy(pool.frames[:1])))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames_per_step = pool.frames.shape[1] // maps.shape[2]
        return TargetReader(maps.shape[1], frames_per_step, pool.targets.shape[2])


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
        yield augment_clips(frames, targets, labels, pool.renderer, generator)


def augment_clips(
    frames: Tensor,
    targets: Tensor,
    labels: Tensor,
    renderer: Renderer,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror half of the clips, shift each by a few pixels (edges repeat), change brightness.

    A mirrored clip gets the targets and the label of what is then seen.
    """
    mirrored = torch.rand(len(frames), generator=generator) < 0.5
    signs = torch.from_numpy(renderer.mirror_signs)
    flipped = torch.from_numpy(renderer.flipped)[labels]
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
    reader: TargetReader,
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
def _measure(recognizer: Any, reader: TargetReader, pool: Pool) -> tuple[float, float]:
    """Mean absolute error of targets and top-1 on `pool`, in float32 as extraction computes."""
    recognizer.eval()
    reader.eval()
    errors = 0.0
    hits = 0
    for start in range(0, len(pool), 64):
        rows = slice(start, start + 64)
        maps = recognizer.backbone(normalize_frames(torch.from_numpy(pool.frames[rows])))
        targets = torch.from_numpy(pool.targets[rows])
        errors += float((reader(maps) - targets).abs().mean(dim=(1, 2)).sum())
        labels = torch.from_numpy(pool.labels[rows])
        hits += int((recognizer.cls_head(maps).argmax(1) == labels).sum())
    return errors / len(pool), hits / len(pool)


# ---- the model card beside the weights -----------------------------------------------------------

_TEXT = """# {name}: {title}

Written by `python cli.py pretrain`; nothing here was typed in.

A small video recognizer from mmaction2's registry, trained on rendered {clips}. {role}
It is of no use on other videos.

- Parameters: {num_parameters:,}{classifier}. Kernels are stored as float16.
- Input: {pool.num_frames} frames of {pool.video_frames}, rendered at {pool.render_px} px, encoded
  as the data set is, decoded and scaled to {pool.input_px} px, as in the pipeline.
- Training clips: {pool.num_clips:,} of stream `{pool.stream}`, seed {pool.seed}, difficulty
  {pool.difficulty:g}, renderer version {version}. Streams are named, so no clip of a
  data set's train or test split, whatever its seed, is among them.
- Held-out clips, for the figures below only: {heldout.num_clips:,} of stream `{heldout.stream}`.
- Augmentation: mirroring, shifts of 3 px, brightness.
- Phase 1, {training.pose_epochs} epoch(s): what moves, in every frame, from the spatially averaged
  map. Targets: {targets}.
- Phase 2, {training.class_epochs} epoch(s): the {num_classes} classes from the globally
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
    training: PretrainSettings,
    history: Sequence[EpochFigures],
) -> None:
    """Write the card as Markdown: how the weights were made and what they reached."""
    renderer = RENDERERS[pool.renderer]
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
        clips=renderer.clip_title,
        version=renderer.version,
        num_classes=len(renderer.class_names),
        pool=pool,
        heldout=heldout,
        training=training,
        precision=precision(),
        targets=", ".join(renderer.target_names),
        rows=rows,
    )
    write_atomic(path, text.encode())
