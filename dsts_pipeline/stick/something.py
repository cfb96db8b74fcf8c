"""Rendered clips -> video files and annotation files, exactly as Something-Something v2 has them.

`20bn-something-something-v2/<id>.webm` (VP9), and in `labels/`: labels.json (class numbers as text
by class name), train.json and validation.json (items {id, label, template, placeholders}),
test.json (items {id}: its labels are not published). A clip's bytes depend on its settings, seed,
split and number alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsts_pipeline.base.files import write_json
from dsts_pipeline.stick.rendering import Key, encode_webm, render_folder, stack_strips
from dsts_pipeline.stick.something_motion import CLASS_NAMES, TEMPLATES, Plan, State
from dsts_pipeline.stick.something_render import (
    Action,
    clip_states,
    draw_clip,
    plan_clip,
    render_clip,
)

RECIPE_FILE = "stick_something.json"
RENDERER_VERSION = 1
VIDEO_FOLDER = "20bn-something-something-v2"
LABEL_FOLDER = "labels"
SPLITS = ("train", "validation", "test")
NUM_UNLABELLED = len(CLASS_NAMES)  # clips of the test split, whose labels stay unknown
_POURED_INTO = (6, 7, 19)
_POURED_OUT_OF = 9
_SOMETHING = "[something]"


@dataclass(frozen=True)
class Recipe:
    """What decides every byte of a rendered data set; `num_test` counts the validation split."""

    num_train: int
    num_test: int
    size_px: int
    num_frames: int
    difficulty: float
    seed: int
    renderer_version: int = RENDERER_VERSION

    def count(self, split: str) -> int:
        """Clips in `split`."""
        counts = {"train": self.num_train, "validation": self.num_test, "test": NUM_UNLABELLED}
        return counts[split]


def clip_id(split: str, index: int) -> str:
    """The id of clip `index` of `split`: a number as text, unique over all splits."""
    return str(len(SPLITS) * index + SPLITS.index(split) + 1)


def render_dataset(root: str | Path, recipe: Recipe, *, num_workers: int = 1) -> int:
    """Write the data set of `recipe` under `root`; return how many clips were rendered anew.

    Raises:
        DataError: `root` holds something that this recipe did not make.
    """
    root = Path(root)
    num_rendered = render_folder(
        root,
        title="stick something",
        recipe_file=RECIPE_FILE,
        recipe=asdict(recipe),
        videos={
            f"{VIDEO_FOLDER}/{clip_id(split, number)}.webm": (split, number)
            for split in SPLITS
            for number in range(recipe.count(split))
        },
        render=partial(_render_video, recipe),
        stale=(f"{VIDEO_FOLDER}/[0-9]*.webm", f"{LABEL_FOLDER}/*.json"),
        num_workers=num_workers,
    )
    _write_annotations(root / LABEL_FOLDER, recipe)
    return num_rendered


def _render_video(recipe: Recipe, key: Key) -> bytes:
    split, number = key
    clip = draw_clip(
        recipe.seed,
        split,
        number,
        size_px=recipe.size_px,
        num_frames=recipe.num_frames,
        difficulty=recipe.difficulty,
    )
    return encode_webm(render_clip(clip))


def _write_annotations(folder: Path, recipe: Recipe) -> None:
    write_json(folder / "labels.json", {name: str(n) for n, name in enumerate(CLASS_NAMES)})
    for split in SPLITS:
        items = [_describe(recipe, split, number) for number in range(recipe.count(split))]
        write_json(folder / f"{split}.json", items)


def _describe(recipe: Recipe, split: str, number: int) -> dict[str, Any]:
    name = clip_id(split, number)
    if split == "test":
        return {"id": name}
    clip = plan_clip(recipe.seed, split, number, difficulty=recipe.difficulty)
    template, placeholders = TEMPLATES[clip.label], _placeholders(clip.label, clip.plan)
    text = template
    for placeholder in placeholders:
        text = text.replace(_SOMETHING, placeholder, 1)
    text = text[0].lower() + text[1:]
    return {"id": name, "label": text, "template": template, "placeholders": placeholders}


def _placeholders(label: int, plan: Plan) -> list[str]:
    """What fills the template's [something]s, in their order."""
    names = [plan.actor.name, plan.other.name]
    if label in _POURED_INTO:
        names = [plan.liquid_name, plan.other.name]
    elif label == _POURED_OUT_OF:
        names = [plan.liquid_name, plan.actor.name, plan.actor.name]
    return names[: TEMPLATES[label].count(_SOMETHING)]


# ---- ------------------------------------------------------------------------------------------
# The scene of every frame as regression targets, for pretraining only: stage two never sees them.
#
# All are in the picture's frame (after mirroring and the camera's turn), so that each can be told
# from the pixels.

TARGET_NAMES = (
    "actor_x",  # middle of the base, in units of the picture's width
    "actor_y",
    "actor_sine",  # of its turn
    "actor_cosine",
    "other_seen",  # 1 where there is a second object
    "other_x",
    "other_y",
    "hand_seen",  # 1 where there is a hand; the first one, if there are two
    "hand_x",
    "hand_y",
    "lid",  # 0 closed, 1 open
    "level",  # of the liquid
    "spill",  # liquid beside the glass
    "camera_x",
)
MIRROR_SIGNS = np.array([-1, 1, -1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, -1], np.float32)


def scene_targets(action: Action) -> np.ndarray:
    """Targets of all frames, float32 [T, P] with P = len(TARGET_NAMES)."""
    targets = np.array([_targets(state) for state in clip_states(action)], np.float32)
    return targets * MIRROR_SIGNS if action.mirrored else targets


def _targets(state: State) -> list[float]:
    actor, other, camera = state.actor, state.other, state.camera_x
    hand = state.tips[0] if state.tips else None
    return [
        actor.x - camera,
        actor.y,
        float(np.sin(actor.angle)),
        float(np.cos(actor.angle)),
        *((1.0, other.x - camera, other.y) if other else (0.0, 0.0, 0.0)),
        *((1.0, hand.x - camera, hand.y) if hand else (0.0, 0.0, 0.0)),
        state.lid,
        state.level,
        sum(state.spill),
        camera,
    ]


# ---- Contact sheet of stick something: every third frame of one clip of each class. -------------
#
# `python -m dsts_pipeline.stick.something OUT.jpg --difficulty 1`


def draw_sheet(labels: Sequence[int], *, difficulty: float, seed: int = 0) -> Image.Image:
    """One row of every third frame per label, its class name above."""
    rows = []
    for number, label in enumerate(labels):
        clip = draw_clip(seed, "sheet", number, label=label, difficulty=difficulty)
        rows.append((f"{label}: {CLASS_NAMES[label]}", render_clip(clip)[::3]))
    return stack_strips(rows)


def main() -> None:
    """Write the sheet that docs/ shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    labels = range(len(CLASS_NAMES))
    sheet = draw_sheet(labels, difficulty=arguments.difficulty, seed=arguments.seed)
    sheet.save(arguments.path, quality=70)


if __name__ == "__main__":
    main()
