"""Contact sheets: the frames of some classes as one picture, to check by eye what is visible.

`python -m dsts_pipeline.clips.stick_diving.sheet OUT.png --difficulty 1` draws the twelve dives
of one takeoff and one dive of each other takeoff.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.clips.stick_diving.classes import VOCABULARY
from dsts_pipeline.clips.stick_diving.render import draw_dive, render_clip

_TITLE_PX = 14


def draw_sheet(labels: Sequence[int], *, difficulty: float, seed: int = 0) -> Image.Image:
    """One row of all frames per label, its class name above."""
    strips = []
    for number, label in enumerate(labels):
        dive = draw_dive(seed, "sheet", number, label=label, difficulty=difficulty)
        strips.append(np.concatenate(list(render_clip(dive)), axis=1))
    height, width = strips[0].shape[:2]
    sheet = Image.new("RGB", (width, len(strips) * (height + _TITLE_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, strip) in enumerate(zip(labels, strips, strict=True)):
        top = row * (height + _TITLE_PX)
        draw.text((3, top + 1), f"{label}: {' '.join(VOCABULARY[label])}", fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + _TITLE_PX))
    return sheet


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
