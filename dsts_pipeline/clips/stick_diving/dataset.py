"""Rendered dives -> video files and annotation files, exactly as Diving48 V2 lays them out.

A clip's bytes depend on its settings, seed, split and number alone; files that are there already
are kept, so that an interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from dsts_pipeline.base.files import write_json
from dsts_pipeline.clips.diving48 import SPLIT_FILES, VIDEO_FOLDER, VOCABULARY_FILE
from dsts_pipeline.clips.rendering.encode import encode_mp4
from dsts_pipeline.clips.rendering.folder import Key, render_folder
from dsts_pipeline.clips.stick_diving.classes import VOCABULARY
from dsts_pipeline.clips.stick_diving.render import draw_dive, render_clip

RECIPE_FILE = "stick_diving.json"
RENDERER_VERSION = 1


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
    num_rendered = render_folder(
        root,
        title="stick diving",
        recipe_file=RECIPE_FILE,
        recipe=asdict(recipe),
        videos={
            f"{VIDEO_FOLDER}/{clip_name(split, number)}.mp4": (split, number)
            for split in SPLIT_FILES
            for number in range(recipe.count(split))
        },
        render=partial(_render_video, recipe),
        stale=(f"{VIDEO_FOLDER}/stick_*.mp4", *SPLIT_FILES.values(), VOCABULARY_FILE),
        num_workers=num_workers,
    )
    _write_annotations(root, recipe)
    return num_rendered


def _render_video(recipe: Recipe, key: Key) -> bytes:
    split, number = key
    dive = draw_dive(
        recipe.seed,
        split,
        number,
        size_px=recipe.size_px,
        num_frames=recipe.num_frames,
        difficulty=recipe.difficulty,
    )
    return encode_mp4(render_clip(dive))


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
