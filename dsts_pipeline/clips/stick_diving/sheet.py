"""Contact sheets: the frames of some classes as one picture, to check by eye what is visible.

`python -m dsts_pipeline.clips.stick_diving.sheet OUT.png --difficulty 1` draws the twelve dives
of one takeoff and one dive of each other takeoff.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from PIL import Image

from dsts_pipeline.clips.rendering.sheet import stack_strips
from dsts_pipeline.clips.stick_diving.classes import VOCABULARY
from dsts_pipeline.clips.stick_diving.render import draw_dive, render_clip


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
