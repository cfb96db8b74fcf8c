"""Contact sheets: the frames of some clips as one picture, to check by eye what is visible.

`python -m dsts_pipeline.stick.sheet stick_diving FILE` draws the twelve dives of one takeoff and
one dive of each other takeoff, `stick_something` every third frame of each class. With `--groups N`
it draws clips of one class (`--label`), a row for each of the first N groups of `--split`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.stick import RENDERERS, Renderer
from dsts_pipeline.stick.groups import group_name

_TITLE_PX = 14
_CLIPS_OF_GROUP = 3
# By renderer: classes shown, frames from one to the next, and the latter on sheets of groups.
_SHOWN: dict[str, tuple[Sequence[int], int, int]] = {
    "stick_diving": ((*range(12), 16, 28, 40), 1, 2),
    "stick_something": (range(24), 3, 4),
}


def draw_sheet(
    renderer: Renderer, labels: Sequence[int], *, step: int, difficulty: float, seed: int = 0
) -> Image.Image:
    """A row of frames for one clip of each class, its name above; of `step` frames one is shown."""
    rows = {}
    for number, label in enumerate(labels):
        clip = renderer.draw(seed, "sheet", number, label=label, difficulty=difficulty)
        title = f"{label}: {renderer.class_names[label]}"
        rows[title] = np.concatenate(list(renderer.render(clip)[::step]), axis=1)
    return _stack(rows)


def draw_sheet_of_groups(
    renderer: Renderer,
    label: int,
    num_groups: int,
    *,
    step: int,
    difficulty: float,
    split: str = "train",
    seed: int = 0,
) -> Image.Image:
    """A row of frames for three clips of each group, all of one class."""
    rows = {}
    for group in range(num_groups):
        frames: list[np.ndarray] = []
        for number in range(group * _CLIPS_OF_GROUP, (group + 1) * _CLIPS_OF_GROUP):
            clip = renderer.draw(
                seed, split, number, label=label, difficulty=difficulty, group=group
            )
            frames += list(renderer.render(clip)[::step])
        title = f"{group_name(split, group)}: {renderer.class_names[label]}"
        rows[title] = np.concatenate(frames, axis=1)
    return _stack(rows)


def _stack(rows: Mapping[str, np.ndarray]) -> Image.Image:
    """Rows of frames [H, W, 3], all of one size, each below its title."""
    height, width = next(iter(rows.values())).shape[:2]
    sheet = Image.new("RGB", (width, len(rows) * (height + _TITLE_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, row) in enumerate(rows.items()):
        top = number * (height + _TITLE_PX)
        draw.text((3, top + 1), title, fill="black")
        sheet.paste(Image.fromarray(row), (0, top + _TITLE_PX))
    return sheet


def main() -> None:
    """Write one of the sheets that docs/ shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("renderer", choices=sorted(_SHOWN))
    parser.add_argument("path")
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", type=int, default=0, metavar="N")
    parser.add_argument("--label", type=int, default=5)
    parser.add_argument("--split", default="train")
    arguments = parser.parse_args()
    renderer = RENDERERS[arguments.renderer]
    labels, step, group_step = _SHOWN[arguments.renderer]
    looks = {"difficulty": arguments.difficulty, "seed": arguments.seed}
    if arguments.groups:
        sheet = draw_sheet_of_groups(
            renderer,
            arguments.label,
            arguments.groups,
            step=group_step,
            split=arguments.split,
            **looks,
        )
    else:
        sheet = draw_sheet(renderer, labels, step=step, **looks)
    sheet.save(arguments.path, quality=80)


if __name__ == "__main__":
    main()
