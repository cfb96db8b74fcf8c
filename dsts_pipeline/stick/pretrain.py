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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import sha256_json, write_atomic
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.backbones import normalize_frames
from dsts_pipeline.extract.build import build_recognizer
from dsts_pipeline.stick import diving, diving_render, something, something_render
from dsts_pipeline.stick import diving as poses
from dsts_pipeline.stick import something as scenes
from dsts_pipeline.stick import something_motion as actions
from dsts_pipeline.stick.rendering import encode_mp4, encode_webm

# ---- What a recognizer can be pretrained on, by the name of the renderer. -----------------------
#
# Enters: seed, name of a random stream, number and size of a clip. Leaves: the bytes of its video
# file, what moves in each of its frames, and its class.


class Drawn(NamedTuple):
    """One clip: its video file, its label, its targets float32 [T, P]."""

    video: bytes
    label: int
    targets: np.ndarray


@dataclass(frozen=True)
class Subject:
    """A renderer as pretraining sees it.

    Attributes:
        title: What its clips are called in a model card.
        version: Of the renderer.
        num_classes: Labels are 0 to num_classes - 1.
        target_names: What is regressed of every frame.
        mirror_signs: Factors of the targets where a clip is mirrored, [P].
        flipped: The label that a clip of each label shows when mirrored, [num_classes].
        draw: (seed, stream, number, size_px=, num_frames=, difficulty=) -> the clip.
    """

    title: str
    version: int
    num_classes: int
    target_names: tuple[str, ...]
    mirror_signs: np.ndarray
    flipped: np.ndarray
    draw: Callable[..., Drawn]


def get_subject(renderer: str) -> Subject:
    """The subject of that name.

    Raises:
        SettingsError: There is none.
    """
    if renderer not in _SUBJECTS:
        raise SettingsError(
            f"dataset.render.renderer {renderer!r} is unknown; expected one of {sorted(_SUBJECTS)}"
        )
    return _SUBJECTS[renderer]


def _draw_dive(seed: int, stream: str, number: int, **how: Any) -> Drawn:
    dive = diving_render.draw_dive(seed, stream, number, **how)
    video = encode_mp4(diving_render.render_clip(dive))
    return Drawn(video, number % len(diving_render.VOCABULARY), poses.pose_targets(dive))


def _draw_action(seed: int, stream: str, number: int, **how: Any) -> Drawn:
    action = something_render.draw_clip(seed, stream, number, **how)
    video = encode_webm(something_render.render_clip(action))
    return Drawn(video, action.label, scenes.scene_targets(action))


_SUBJECTS = {
    "stick_diving": Subject(
        title="stick dives",
        version=diving.RENDERER_VERSION,
        num_classes=len(diving_render.VOCABULARY),
        target_names=poses.TARGET_NAMES,
        mirror_signs=poses.MIRROR_SIGNS,
        flipped=np.arange(len(diving_render.VOCABULARY)),
        draw=_draw_dive,
    ),
    "stick_something": Subject(
        title="stick something clips",
        version=something.RENDERER_VERSION,
        num_classes=len(actions.CLASS_NAMES),
        target_names=scenes.TARGET_NAMES,
        mirror_signs=scenes.MIRROR_SIGNS,
        flipped=np.array([actions.flip_label(label) for label in range(len(actions.CLASS_NAMES))]),
        draw=_draw_action,
    ),
}


# ---- A pool of rendered clips on disk: frames as the backbone will get them, labels, targets. ---
#
# Rendering costs more than a training step, so the clips are made once and read many times. The
# pool is a folder of .npz chunks, each written whole; an interrupted rendering goes on where it
# stopped.

CHUNK_CLIPS = 96


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

    @property
    def subject(self) -> Subject:
        """What is drawn."""
        return get_subject(self.renderer)


@dataclass(frozen=True)
class Pool:
    """Clips in memory.

    Attributes:
        frames: uint8 [n, T, H, W, 3].
        targets: What is regressed, float32 [n, T, P].
        labels: int64 [n].
        subject: What they show.
    """

    frames: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    subject: Subject

    def __len__(self) -> int:
        return len(self.labels)


def render_pool(
    folder: str | Path, recipe: PoolRecipe, *, num_workers: int = 1, chunk_clips: int = CHUNK_CLIPS
) -> Pool:
    """Render what is missing of the pool under `folder`, then load it whole.

    Memory: n * T * H * W * 3 bytes, that is 0.2 MB a clip at 16 frames of 64 px.
    """
    if recipe.stream in ("train", "test", "validation"):
        raise ValueError(f"stream {recipe.stream!r} is a split of the data set; use another name")
    made_of = asdict(recipe) | {"num_clips": 0, "renderer_version": recipe.subject.version}
    home = Path(folder) / f"{recipe.stream}-{sha256_json(made_of)[:12]}"
    starts = range(0, recipe.num_clips, chunk_clips)
    missing = [start for start in starts if not _chunk_path(home, start).exists()]
    if missing:
        count = len(missing)
        work = ([home] * count, [recipe] * count, missing, [chunk_clips] * count)
        with track(f"Rendering pool {recipe.stream}", count * chunk_clips) as progress:
            for _ in map_in_processes(_render_chunk, *work, num_workers=num_workers):
                progress.advance(chunk_clips)
    return _load(home, recipe, starts)


def _chunk_path(home: Path, start: int) -> Path:
    return home / f"clips-{start:07d}.npz"


def _render_chunk(home: Path, recipe: PoolRecipe, start: int, num_clips: int) -> None:
    frames, targets, labels = [], [], []
    order = uniform_frames(recipe.video_frames, recipe.num_frames)
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch) / "clip.video"
        for number in range(start, start + num_clips):
            clip = recipe.subject.draw(
                recipe.seed,
                recipe.stream,
                number,
                size_px=recipe.render_px,
                num_frames=recipe.video_frames,
                difficulty=recipe.difficulty,
            )
            video.write_bytes(clip.video)
            frames.append(decode_frames(video, order, size_px=recipe.input_px))
            targets.append(clip.targets[order])
            labels.append(clip.label)
    buffer = io.BytesIO()
    np.savez(buffer, frames=np.stack(frames), targets=np.stack(targets), labels=np.array(labels))
    write_atomic(_chunk_path(home, start), buffer.getvalue())


def _load(home: Path, recipe: PoolRecipe, starts: range) -> Pool:
    shape = (recipe.num_clips, recipe.num_frames, recipe.input_px, recipe.input_px, 3)
    frames = np.empty(shape, np.uint8)
    targets: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for start in starts:
        count = min(starts.step, recipe.num_clips - start)
        with np.load(_chunk_path(home, start), allow_pickle=False) as chunk:
            frames[start : start + count] = chunk["frames"][:count]
            targets.append(chunk["targets"][:count])
            labels.append(chunk["labels"][:count])
    return Pool(frames, np.concatenate(targets), np.concatenate(labels), recipe.subject)


# ---- Training an embedded recognizer: first on what moves in each frame, then on the classes. ---
#
# Phase 1 regresses the targets of every frame (the diver's pose; where hand and objects are) from
# the spatially averaged map: a quick, strong signal. Phase 2 trains what the paper calls the
# baseline: globally averaged map, one linear classifier; the first loss stays on with a small
# weight. The backbone then freezes for good. Without phase 2 it has never been told a class, and
# its recognizer's classifier is left out.

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


# ---- The model card beside pretrained weights: how they were made and what they reached. --------

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
