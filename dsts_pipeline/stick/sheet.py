"""Contact sheets: the frames of some clips as one picture, to check by eye what is visible.

`python -m dsts_pipeline.stick.sheet stick_diving FILE` draws the twelve dives of one takeoff and
one dive of each other takeoff, `stick_something` every third frame of each class.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.stick import RENDERERS, Renderer

_TITLE_PX = 14
# By renderer: classes shown, frames from one to the next.
_SHOWN: dict[str, tuple[Sequence[int], int]] = {
    "stick_diving": ((*range(12), 16, 28, 40), 1),
    "stick_something": (range(24), 3),
}


def draw_sheet(
    renderer: Renderer, labels: Sequence[int], *, step: int, difficulty: float, seed: int = 0
) -> Image.Image:
    """A row of frames for one clip of each class, its name above; of `step` frames one is shown."""
    strips = []
    for number, label in enumerate(labels):
        clip = renderer.draw(seed, "sheet", number, label=label, difficulty=difficulty)
        strips.append(np.concatenate(list(renderer.render(clip)[::step]), axis=1))
    height, width = strips[0].shape[:2]
    sheet = Image.new("RGB", (width, len(strips) * (height + _TITLE_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, strip) in enumerate(zip(labels, strips, strict=True)):
        top = row * (height + _TITLE_PX)
        draw.text((3, top + 1), f"{label}: {renderer.class_names[label]}", fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + _TITLE_PX))
    return sheet


def main() -> None:
    """Write one of the sheets that docs/ shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("renderer", choices=sorted(_SHOWN))
    parser.add_argument("path")
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    labels, step = _SHOWN[arguments.renderer]
    sheet = draw_sheet(
        RENDERERS[arguments.renderer],
        labels,
        step=step,
        difficulty=arguments.difficulty,
        seed=arguments.seed,
    )
    sheet.save(arguments.path, quality=80)


if __name__ == "__main__":
    main()
