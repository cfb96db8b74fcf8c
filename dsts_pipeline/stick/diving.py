"""Rendered dives -> video files and annotation files, exactly as Diving48 V2 lays them out.

A clip's bytes depend on its settings, seed, split and number alone; files that are there already
are kept, so that an interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dsts_pipeline.base.files import write_json
from dsts_pipeline.clips.diving48 import SPLIT_FILES, VIDEO_FOLDER, VOCABULARY_FILE
from dsts_pipeline.stick.diving_render import (
    VOCABULARY,
    Dive,
    Pose,
    clip_poses,
    draw_dive,
    place,
    render_clip,
)
from dsts_pipeline.stick.rendering import Key, encode_mp4, render_folder, stack_strips

# ---- Rendered dives -> video files and annotation files, exactly as Diving48 V2 lays them out. --
#
# A clip's bytes depend on its settings, seed, split and number alone; files that are there already
# are kept, so that an interrupted rendering goes on where it stopped.

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


# ---- Pose of every frame as regression targets, for pretraining only: stage two never sees them.
#
# All are in the picture's frame (after mirroring), so that each can be told from the pixels.

TARGET_NAMES = (
    "axis_x",  # unit vector pelvis to neck
    "axis_y",
    "axis_z",
    "front_x",  # unit vector out of the chest
    "front_y",
    "front_z",
    "right_x",  # unit vector from the left to the right shoulder
    "right_y",
    "right_z",
    "hip",  # flexion, radians
    "knee",
    "spin_rate",  # signed turn in the picture since the frame before, half turns
    "twist_rate",  # unsigned turn about the long axis since the frame before, half turns
)
MIRROR_SIGNS = np.array([-1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, -1, 1], np.float32)


def pose_targets(dive: Dive) -> np.ndarray:
    """Targets of all frames, float32 [T, P] with P = len(TARGET_NAMES)."""
    poses = clip_poses(dive)
    rows = np.stack([_still_targets(pose, dive.scene.camera_yaw) for pose in poses])
    spin = np.diff([pose.somersault for pose in poses], prepend=poses[0].somersault) / np.pi
    twist = np.abs(np.diff([pose.twist for pose in poses], prepend=poses[0].twist)) / np.pi
    targets = np.concatenate([rows, spin[:, None], twist[:, None]], axis=1).astype(np.float32)
    return targets * MIRROR_SIGNS if dive.scene.mirrored else targets


def _still_targets(pose: Pose, camera_yaw: float) -> np.ndarray:
    placed = place(pose, camera_yaw)
    axis = _unit(placed["neck"] - placed["pelvis"])
    right = _unit(placed["right_shoulder"] - placed["left_shoulder"])
    return np.concatenate([axis, np.cross(axis, right), right, [pose.hip, pose.knee]])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


# ---- Contact sheets: the frames of some classes as one picture, to check by eye what is visible.
#
# `python -m dsts_pipeline.stick.diving OUT.png --difficulty 1` draws the twelve dives
# of one takeoff and one dive of each other takeoff.


def draw_sheet(labels: Sequence[int], *, difficulty: float, seed: int = 0) -> Image.Image:
    """One row of all frames per label, its class name above."""
    rows = []
    for number, label in enumerate(labels):
        dive = draw_dive(seed, "sheet", number, label=label, difficulty=difficulty)
        rows.append((f"{label}: {' '.join(VOCABULARY[label])}", render_clip(dive)))
    return stack_strips(rows)


def main() -> None:
    """Write the sheet that docs/ shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--difficulty", type=float, default=1.0)
    arguments = parser.parse_args()
    labels = [*range(12), 16, 28, 40]
    draw_sheet(labels, difficulty=arguments.difficulty).save(arguments.path, quality=85)


if __name__ == "__main__":
    main()
