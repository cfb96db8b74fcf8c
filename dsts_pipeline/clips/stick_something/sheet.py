"""Contact sheet of stick something: every third frame of one clip of each class.

`python -m dsts_pipeline.clips.stick_something.sheet OUT.jpg --difficulty 1`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from PIL import Image

from dsts_pipeline.clips.rendering.sheet import stack_strips
from dsts_pipeline.clips.stick_something.classes import CLASS_NAMES
from dsts_pipeline.clips.stick_something.render import draw_clip, render_clip


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
