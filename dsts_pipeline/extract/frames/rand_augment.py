"""RandAugment for clips: a few random operations of one strength, the same for all frames.

Enters: uint8 images [H, W, 3] of one size. Leaves: as many, of the same size.
mmaction2 has it only through packages that don't build without torchvision, hence this one.

Source: RandAugment, https://arxiv.org/abs/1909.13719, with N = 2 operations of one magnitude.
Choice: the paper's operations without identity and solarize; shears and shifts by up to 0.3 of the
picture, turns by up to 30 degrees, what comes in from outside is grey.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NUM_OPERATIONS = 2
LARGEST_MAGNITUDE = 10.0
_GREY = (128, 128, 128)
_Operation = Callable[[Image.Image, float], Image.Image]


def rand_augment(
    images: Sequence[np.ndarray], magnitude: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Apply two operations, drawn without regard to each other, to every image.

    Args:
        magnitude: 0 (no change but what equalising does) to 10.
        generator: Draws the operations and their directions.

    Raises:
        ValueError: The magnitude is out of range.
    """
    if not 0.0 <= magnitude <= LARGEST_MAGNITUDE:
        raise ValueError(f"magnitude is {magnitude}, expected 0 to {LARGEST_MAGNITUDE:g}")
    operations = tuple(_OPERATIONS.values())
    pictures = [Image.fromarray(image) for image in images]
    for number in generator.integers(len(operations), size=NUM_OPERATIONS):
        strength = magnitude / LARGEST_MAGNITUDE * generator.choice((-1.0, 1.0))
        pictures = [operations[number](picture, strength) for picture in pictures]
    return [np.asarray(picture) for picture in pictures]


def _affine(picture: Image.Image, *coefficients: float) -> Image.Image:
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
        fillcolor=_GREY,
    )


def _rotate(picture: Image.Image, strength: float) -> Image.Image:
    return picture.rotate(30 * strength, resample=Image.Resampling.BILINEAR, fillcolor=_GREY)


def _posterize(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.posterize(picture, 8 - round(4 * abs(strength)))


_OPERATIONS: dict[str, _Operation] = {
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "rotate": _rotate,
    "posterize": _posterize,
    "color": lambda picture, s: ImageEnhance.Color(picture).enhance(1 + 0.9 * s),
    "contrast": lambda picture, s: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * s),
    "brightness": lambda picture, s: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * s),
    "sharpness": lambda picture, s: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * s),
    "shear_x": lambda picture, s: _affine(picture, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda picture, s: _affine(picture, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda picture, s: _affine(picture, 1, 0, 0.3 * s * picture.width, 0, 1, 0),
    "translate_y": lambda picture, s: _affine(picture, 1, 0, 0, 0, 1, 0.3 * s * picture.height),
}
