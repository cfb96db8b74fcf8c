"""Parts of a drawn frame that do not depend on what happens in it: background and development.

Drawing is by Pillow at `FINE` times the size, then averaged down.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

FINE = 3  # drawn pixels per frame pixel, in each direction
BACKGROUND_FRAMES = 2.6  # side of the background, in frames


def draw_background(generator: np.random.Generator, size_px: int, difficulty: float) -> Image.Image:
    """Smooth patches of two scales and a few straight edges, RGB, of 2.6 x 2.6 frames."""
    size = int(size_px * BACKGROUND_FRAMES)
    values = np.empty((size, size, 3), np.float32)
    values[:] = generator.uniform(80, 180) + generator.normal(0.0, 14.0, 3)
    for cells, amplitude in ((5, 18.0), (16, 10.0)):
        grey = generator.normal(0.0, amplitude * difficulty, (cells, cells, 1))
        patches = grey + generator.normal(0.0, 0.4 * amplitude * difficulty, (cells, cells, 3))
        values += _enlarge(patches + 128.0, size) - 128.0
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(generator.integers(3, 4 + int(8 * difficulty))):
        ends = generator.integers(0, size, 4).tolist()
        shade = generator.uniform(50, 210) + generator.normal(0.0, 16.0, 3)
        red, green, blue = np.clip(shade, 0, 255).astype(int).tolist()
        thickness = int(generator.integers(1, max(2, size_px // 20)))
        draw.line(ends, fill=(red, green, blue), width=thickness)
    return picture


def _enlarge(patches: np.ndarray, size: int) -> np.ndarray:
    """Smoothly enlarge [cells, cells, 3] values of 0 to 255 to [size, size, 3]."""
    small = Image.fromarray(np.clip(patches, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def cut_background(background: Image.Image, shift: np.ndarray, size_px: int) -> Image.Image:
    """The part of the background that a camera sees, `FINE` times too large.

    Args:
        background: See `draw_background`.
        shift: Pixels [2] (x right, y down) from its usual place; it stops at the edges.
        size_px: Frame height and width.
    """
    span = background.width - size_px
    x, y = np.clip(np.array([0.3, 0.3]) * span + shift, 0, span - 1)
    picture = background.transform(
        (size_px, size_px),
        Image.Transform.AFFINE,
        (1, 0, float(x), 0, 1, float(y)),
        Image.Resampling.BILINEAR,
    )
    fine = size_px * FINE
    return picture.resize((fine, fine), Image.Resampling.NEAREST)


def develop(
    picture: np.ndarray,
    *,
    contrast: float,
    exposure: float,
    noise: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Exposure, contrast and sensor noise: uint8 [H, W, 3] in, another one out.

    Args:
        noise: float32 [2 H, 2 W, 3], cut at a random place.
    """
    size = picture.shape[0]
    row, column = generator.integers(0, size, 2)
    values = picture.astype(np.float32)
    values -= 128.0
    values *= contrast
    values += 128.0 + exposure
    values += noise[row : row + size, column : column + size]
    return np.clip(values, 0, 255).astype(np.uint8)
