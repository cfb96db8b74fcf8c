"""A pool of rendered clips on disk: frames as the backbone will get them, labels, targets.

Rendering costs more than a training step, so the clips are made once and read many times. The pool
is a folder of .npz chunks, each written whole; an interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.files import sha256_json, write_atomic
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.learn.pretrain.subjects import Subject, get_subject

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
