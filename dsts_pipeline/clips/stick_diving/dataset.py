"""Rendered dives -> video files and annotation files, exactly as Diving48 V2 lays them out.

A clip's bytes depend on its settings, seed, split and number alone; files that are there already
are kept, so that an interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, write_atomic, write_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.diving48 import SPLIT_FILES, VIDEO_FOLDER, VOCABULARY_FILE
from dsts_pipeline.clips.stick_diving.classes import VOCABULARY
from dsts_pipeline.clips.stick_diving.render import draw_dive, render_clip

RECIPE_FILE = "stick_diving.json"
RENDERER_VERSION = 1
_FRAMES_PER_SECOND = 12
_BATCH_CLIPS = 16


@dataclass(frozen=True)
class Recipe:
    """What decides every byte of a rendered data set."""

    num_train: int
    num_test: int
    size_px: int
    num_frames: int
    difficulty: float
    seed: int
    renderer_version: int = RENDERER_VERSION

    def count(self, split: str) -> int:
        """Clips in `split`."""
        return self.num_train if split == "train" else self.num_test


def clip_name(split: str, index: int) -> str:
    """The vid_name of clip `index` of `split`, such as `stick_test_00042`."""
    return f"stick_{split}_{index:05d}"


def render_dataset(root: str | Path, recipe: Recipe, *, num_workers: int = 1) -> int:
    """Write the data set of `recipe` under `root`; return how many clips were rendered anew.

    Raises:
        DataError: `root` holds something that this recipe did not make.
    """
    root = Path(root)
    _check_root(root, recipe)
    (root / VIDEO_FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(root / RECIPE_FILE, asdict(recipe))
    wanted = [(split, n) for split in SPLIT_FILES for n in range(recipe.count(split))]
    missing = [
        (split, n)
        for split, n in wanted
        if not (root / VIDEO_FOLDER / f"{clip_name(split, n)}.mp4").exists()
    ]
    if missing:
        with track("Rendering stick dives", len(missing)) as progress:
            for count in _render_all(root, recipe, missing, num_workers):
                progress.advance(count)
    _write_annotations(root, recipe)
    return len(missing)


def _check_root(root: Path, recipe: Recipe) -> None:
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / RECIPE_FILE).exists():
        raise DataError(
            f"{root} is not empty and holds no {RECIPE_FILE}, so stick diving will not be written "
            "there; set dataset.root to an empty folder"
        )
    if read_json(root / RECIPE_FILE) != asdict(recipe):
        _remove_rendered(root)


def _remove_rendered(root: Path) -> None:
    """Another recipe's clips are stale: remove exactly the files that a rendering makes.

    The recipe itself is overwritten after this, so that a kill in between removes the rest later.
    """
    for video in (root / VIDEO_FOLDER).glob("stick_*.mp4"):
        video.unlink()
    for name in (*SPLIT_FILES.values(), VOCABULARY_FILE):
        (root / name).unlink(missing_ok=True)


def _render_all(
    root: Path, recipe: Recipe, missing: list[tuple[str, int]], num_workers: int
) -> Iterator[int]:
    batches = [missing[i : i + _BATCH_CLIPS] for i in range(0, len(missing), _BATCH_CLIPS)]
    if num_workers <= 1:
        for batch in batches:
            yield _render_batch(root, recipe, batch)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(_render_batch, [root] * len(batches), [recipe] * len(batches), batches)


def _render_batch(root: Path, recipe: Recipe, batch: list[tuple[str, int]]) -> int:
    for split, number in batch:
        dive = draw_dive(
            recipe.seed,
            split,
            number,
            size_px=recipe.size_px,
            num_frames=recipe.num_frames,
            difficulty=recipe.difficulty,
        )
        content = encode_mp4(render_clip(dive))
        write_atomic(root / VIDEO_FOLDER / f"{clip_name(split, number)}.mp4", content)
    return len(batch)


def encode_mp4(frames: np.ndarray, *, quality: int = 20) -> bytes:
    """H.264 in mp4, single-threaded so that equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        quality: x264's constant rate factor; lower is better.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FRAMES_PER_SECOND)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": str(quality),
            "preset": "veryfast",
            "threads": "1",
            # Without it, x264's macroblock tree rounds differently from call to call.
            "x264-params": "cpu-independent=1",
        }
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write_annotations(root: Path, recipe: Recipe) -> None:
    write_json(root / VOCABULARY_FILE, [list(entry) for entry in VOCABULARY])
    for split, name in SPLIT_FILES.items():
        items = [
            {
                "vid_name": clip_name(split, number),
                "label": number % len(VOCABULARY),
                "start_frame": 0,
                "end_frame": recipe.num_frames,
            }
            for number in range(recipe.count(split))
        ]
        write_json(root / name, items)
