"""Contact sheets: clips as rows of frames under their titles, to check by eye what is visible."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

_TITLE_PX = 14


def stack_strips(rows: Iterable[tuple[str, np.ndarray]]) -> Image.Image:
    """One row per clip, all its frames side by side, its title above.

    Args:
        rows: (title, frames uint8 [T, H, W, 3]); equal shapes.
    """
    titled = [(title, np.concatenate(list(frames), axis=1)) for title, frames in rows]
    height, width = titled[0][1].shape[:2]
    sheet = Image.new("RGB", (width, len(titled) * (height + _TITLE_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, strip) in enumerate(titled):
        top = row * (height + _TITLE_PX)
        draw.text((3, top + 1), title, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + _TITLE_PX))
    return sheet
