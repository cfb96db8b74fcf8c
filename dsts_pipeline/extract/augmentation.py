"""Augmented views of training clips: mmaction2's own transforms, drawn from a seed of the view.

Enters: uint8 frames [T, H, W, 3], scaled and not yet cut. Leaves: uint8 [T, S, S, 3]; all frames of
a view are treated alike. mmaction2 is imported when the first view is augmented (seconds): decode
processes that augment nothing do without it.

mmaction2 draws from the global streams of `random` and numpy; they are seeded for the view and put
back afterwards, so that a view's bytes depend on its seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dsts_pipeline.base.errors import LazyExtra
from dsts_pipeline.extract.flow import NUM_CHANNELS, mirror
from dsts_pipeline.extract.pipelines import Scaling, cut_square

if TYPE_CHECKING:
    from PIL import Image, ImageEnhance, ImageOps
else:
    Image = LazyExtra("PIL.Image", "augmentation")
    ImageEnhance = LazyExtra("PIL.ImageEnhance", "augmentation")
    ImageOps = LazyExtra("PIL.ImageOps", "augmentation")

# mmaction2's configurations of TSN and TSM: https://github.com/open-mmlab/mmaction2
_SCALES = (1, 0.875, 0.75, 0.66)


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training view; the values here leave it as it is.

    Attributes:
        crop: "centre", "multi_scale" (mmaction2's MultiScaleCrop) or "resized"
            (RandomResizedCrop); both draw place and size of a window that is scaled to the input.
        flip: Probability that a view is mirrored left to right.
        color_jitter: Brightness, contrast and saturation change by up to this share, 0 to 1.
        rand_augment: Magnitude of two random operations, 0 (none) to 10.
        erasing: Probability that a random rectangle is painted grey.
    """

    crop: Literal["centre", "multi_scale", "resized"] = "centre"
    flip: float = 0.0
    color_jitter: float = 0.0
    rand_augment: float = 0.0
    erasing: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether views are changed at all."""
        return self != Augmentation()

    def describe(self) -> dict[str, Any]:
        """For a store's fingerprint."""
        return asdict(self)


def import_transforms() -> None:
    """Import mmaction2's transforms now, which takes seconds, and not while a clip waits."""
    _transforms()


def augment(
    frames: np.ndarray,
    augmentation: Augmentation,
    size_px: int,
    *,
    seed: int,
    is_flipped: bool,
    scaling: Scaling | None = None,
) -> np.ndarray:
    """One augmented view: uint8 [T, size_px, size_px, 3], C order.

    Args:
        frames: uint8 [T, H, W, 3], or stacks of optical flow [T, H, W, 10], both sides at least
            `size_px`.
        seed: Of this view; the same seed gives the same bytes.
        is_flipped: Whether it is mirrored; drawn when the store is planned, since a mirrored clip
            may have another label.
        scaling: Of the frames, which says where their middle is.
    """
    with _seeded(seed):
        if augmentation.crop == "centre":
            images = list(cut_square(frames, size_px, 1, scaling))
        else:
            images = _crop(list(frames), augmentation.crop, size_px)
        if is_flipped:
            images = [_mirror(image) for image in images]
        if augmentation.color_jitter:
            jitter = augmentation.color_jitter
            images = _apply("ColorJitter", images, **_color_ranges(jitter))
        if augmentation.rand_augment:
            images = rand_augment(images, augmentation.rand_augment, np.random.default_rng(seed))
        if augmentation.erasing:
            images = [image.copy() for image in images]
            images = _apply("RandomErasing", images, erase_prob=float(augmentation.erasing))
    return np.stack(images)


def _mirror(image: np.ndarray) -> np.ndarray:
    if image.shape[-1] == NUM_CHANNELS:
        return mirror(image[None])[0]
    return np.ascontiguousarray(image[:, ::-1])


def _color_ranges(strength: float) -> dict[str, float]:
    """Choice: the hue stays, because mmaction2 1.2's change of it fails under numpy 2 (uint8)."""
    return {"brightness": strength, "contrast": strength, "saturation": strength, "hue": 0.0}


def _crop(images: list[np.ndarray], kind: str, size_px: int) -> list[np.ndarray]:
    if kind == "multi_scale":
        options = {"scales": _SCALES, "max_wh_scale_gap": 1, "num_fixed_crops": 13}
        images = _apply("MultiScaleCrop", images, input_size=size_px, **options)
    else:
        images = _apply("RandomResizedCrop", images)
    return _apply("Resize", images, scale=(size_px, size_px), keep_ratio=False)


def _apply(name: str, images: list[np.ndarray], **options: Any) -> list[np.ndarray]:
    """Run one of mmaction2's transforms; it is built here because some draw when they are built."""
    results = {"imgs": images, "img_shape": images[0].shape[:2], "modality": "RGB"}
    return _transforms()[name](**options)(results)["imgs"]


def _transforms() -> dict[str, Any]:
    from dsts_pipeline.extract.mmaction_compat import import_mmaction

    import_mmaction()
    from mmaction.datasets.transforms import processing

    return vars(processing)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = random.getstate()
    numpy_state = np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


# ---- RandAugment for clips ----------------------------------------------------------------------
#
# A few random operations of one strength, the same for all frames; mmaction2 has it only through
# packages that don't build without torchvision, hence this one.
# Source: RandAugment, https://arxiv.org/abs/1909.13719, with N = 2 operations of one magnitude.
# Choice: the paper's operations without identity and solarize; shears and shifts by up to 0.3 of
# the picture, turns by up to 30 degrees, what comes in from outside is grey.

NUM_OPERATIONS = 2
LARGEST_MAGNITUDE = 10.0
_GREY = (128, 128, 128)
_Operation = Callable[[Any, float], Any]  # a picture of PIL and a strength to a picture


def rand_augment(
    images: Sequence[np.ndarray], magnitude: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Apply two operations, drawn without regard to each other, to every image uint8 [H, W, 3].

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
