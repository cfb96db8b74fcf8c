"""A pool of rendered clips on disk: frames as the backbone will get them, labels, pose targets.

Rendering costs more than a training step, so the clips are made once and read many times. The pool
is a folder of .npz chunks, each written whole; an interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

import io
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dsts_pipeline.base.files import sha256_json, write_atomic
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.rendering.encode import encode_mp4
from dsts_pipeline.clips.rendering.folder import interrupts_held
from dsts_pipeline.clips.stick_diving.classes import VOCABULARY
from dsts_pipeline.clips.stick_diving.dataset import RENDERER_VERSION
from dsts_pipeline.clips.stick_diving.render import draw_dive, render_clip
from dsts_pipeline.clips.stick_diving.targets import pose_targets

CHUNK_CLIPS = 96


@dataclass(frozen=True)
class PoolRecipe:
    """What decides the content of a pool.

    Attributes:
        stream: Name of the random stream; never the name of a split of the data set.
        num_clips: Clips, balanced over the classes.
        num_frames, render_px, input_px: Length, rendered size and size after decoding.
        difficulty, seed: As in `draw_dive`.
    """

    stream: str
    num_clips: int
    num_frames: int
    render_px: int
    input_px: int
    difficulty: float
    seed: int
    renderer_version: int = RENDERER_VERSION


@dataclass(frozen=True)
class Pool:
    """Clips in memory.

    Attributes:
        frames: uint8 [n, T, H, W, 3].
        targets: Pose targets float32 [n, T, P].
        labels: int64 [n].
    """

    frames: np.ndarray
    targets: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def render_pool(
    folder: str | Path, recipe: PoolRecipe, *, num_workers: int = 1, chunk_clips: int = CHUNK_CLIPS
) -> Pool:
    """Render what is missing of the pool under `folder`, then load it whole.

    Memory: n * T * H * W * 3 bytes, that is 0.2 MB a clip at 16 frames of 64 px.
    """
    if recipe.stream in ("train", "test"):
        raise ValueError(f"stream {recipe.stream!r} is a split of the data set; use another name")
    home = Path(folder) / f"{recipe.stream}-{sha256_json(asdict(recipe) | {'num_clips': 0})[:12]}"
    starts = range(0, recipe.num_clips, chunk_clips)
    missing = [start for start in starts if not _chunk_path(home, start).exists()]
    if missing:
        context = multiprocessing.get_context("spawn")
        with (
            track(f"Rendering pool {recipe.stream}", len(missing) * chunk_clips) as progress,
            ProcessPoolExecutor(num_workers, mp_context=context) as executor,
        ):
            count = len(missing)
            work = ([home] * count, [recipe] * count, missing, [chunk_clips] * count)
            with interrupts_held():
                done = executor.map(_render_chunk, *work)
            for _ in done:
                progress.advance(chunk_clips)
    return _load(home, recipe, starts)


def _chunk_path(home: Path, start: int) -> Path:
    return home / f"clips-{start:07d}.npz"


def _render_chunk(home: Path, recipe: PoolRecipe, start: int, num_clips: int) -> None:
    frames, targets, labels = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch) / "clip.mp4"
        for number in range(start, start + num_clips):
            dive = draw_dive(
                recipe.seed,
                recipe.stream,
                number,
                size_px=recipe.render_px,
                num_frames=recipe.num_frames,
                difficulty=recipe.difficulty,
            )
            video.write_bytes(encode_mp4(render_clip(dive)))
            order = np.arange(recipe.num_frames)
            frames.append(decode_frames(video, order, size_px=recipe.input_px))
            targets.append(pose_targets(dive))
            labels.append(number % len(VOCABULARY))
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
    return Pool(frames, np.concatenate(targets), np.concatenate(labels))
