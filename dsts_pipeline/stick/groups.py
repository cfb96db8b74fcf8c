"""Groups of clips: one person at one place before one camera, as real data sets have them.

Enters: the seed of a data set, a split and the number of a group in it. Leaves: what the group's
clips share (camera, wall, habits of moving), drawn once per group from a random stream of its own.
The groups of two splits have nothing in common. What only one renderer needs is in `diving_groups`
and `something_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.stick.rendering import Colour, Film, draw_background

# Two clips of a group differ by this share of what two clips differ by where there are no groups.
WITHIN = 0.25


def group_of(number: int, num_classes: int, num_groups: int) -> int | None:
    """The group (0 to `num_groups` - 1) of clip `number` of a split; None: there are no groups.

    The first `num_groups` clips are of different groups. Of `num_classes * num_groups` clips in a
    row from the first, every group has one of each class (clip `number` being of class `number`
    modulo `num_classes`).

    >>> [group_of(number, 2, 4) for number in range(8)]
    [0, 1, 2, 3, 1, 2, 3, 0]
    """
    if num_groups == 0:
        return None
    return (number + number // lcm(num_classes, num_groups)) % num_groups


def group_name(split: str, group: int) -> str:
    """What a group is called in annotations, such as `train_g03`."""
    return f"{split}_g{group:02d}"


def open_stream(seed: int, data_set: str, split: str, group: int) -> np.random.Generator:
    """The random stream that a group is drawn from; no clip draws from it."""
    return np.random.default_rng(derive_seed(seed, data_set, "groups", split, group))


# ---- habits --------------------------------------------------------------------------------------
#
# A clip's motion has free variables, each uniform in a range. A group's habit is where in the range
# its clips are: 0 the low end, 1 the high end; it may lie outside, where no clip without groups is.

Habits = Mapping[str, float]


def draw_habits(
    generator: np.random.Generator, limits: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Habits between `limits`, by the name of the variable."""
    return {name: float(generator.uniform(low, high)) for name, (low, high) in limits.items()}


def by_habit(drawn: float, low: float, high: float, habit: float) -> float:
    """The variable of a clip whose group has a habit.

    Args:
        drawn: Uniform in `low` to `high`.
        habit: See `Habits`.
    """
    return low + habit * (high - low) + WITHIN * (drawn - 0.5 * (low + high))


# ---- the camera ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """What a group's camera makes of a picture.

    Attributes:
        matrix: From places in the frame to places in the picture, both relative to the middle,
            [2, 2]: tilt, stretch and shear, never a mirror image. No place in the frame is outside
            the picture.
        zoom: How much larger things are in the frame than in the picture.
        gains: Factors on red, green and blue, [3].
        saturation: 0 grey, 1 as it is.
        gamma: Exponent of all values.
        blur_px: Radius, in pixels of a frame 96 pixels high.
        vignette: Share of the light that the corners lose.
        exposure, contrast: Added to and multiplied with those of a clip's `Film`.
        noise: Factor on the noise of a clip's `Film`.
    """

    matrix: np.ndarray
    zoom: float
    gains: np.ndarray
    saturation: float
    gamma: float
    blur_px: float
    vignette: float
    exposure: float
    contrast: float
    noise: float

    def see(self, picture: np.ndarray) -> np.ndarray:
        """The frame of a picture before it is developed, both uint8 [H, W, 3], H = W."""
        size = picture.shape[0]
        half = 0.5 * size
        move = half - half * self.matrix.sum(axis=1, keepdims=True)
        coefficients = np.concatenate([self.matrix, move], axis=1)
        image = Image.fromarray(picture).transform(
            (size, size),
            Image.Transform.AFFINE,
            coefficients.ravel().tolist(),
            Image.Resampling.BICUBIC,
        )
        image = image.filter(ImageFilter.GaussianBlur(self.blur_px * size / 96))
        values = np.asarray(image, np.float32) / np.float32(255)
        grey = values.mean(axis=2, keepdims=True)
        values = grey + np.float32(self.saturation) * (values - grey)
        values = np.clip(values, 0, 1) ** np.float32(self.gamma) * self.gains.astype(np.float32)
        place = np.linspace(-1, 1, size, dtype=np.float32) ** 2
        values *= 1 - np.float32(0.5 * self.vignette) * (place[:, None] + place)[..., None]
        return np.clip(255 * values, 0, 255).astype(np.uint8)

    def load(self, film: Film) -> LoadedFilm:
        """A clip's film in this camera."""
        return LoadedFilm(
            film.noise * np.float32(self.noise),
            exposure=film.exposure + self.exposure,
            contrast=film.contrast * self.contrast,
            camera=self,
        )


@dataclass(frozen=True)
class LoadedFilm(Film):
    """A film that gets what a group's camera sees."""

    camera: Camera

    def develop(self, picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The frame of a picture, both uint8 [H, W, 3]."""
        return super().develop(self.camera.see(picture), generator)


def draw_camera(generator: np.random.Generator) -> Camera:
    """Draw a camera: from a bright sharp one to a tilted, blurred, noisy, yellowish one."""
    tilt = float(generator.uniform(-0.16, 0.16))
    stretch = float(np.exp(generator.uniform(-0.12, 0.12)))
    shear = float(generator.uniform(-0.1, 0.1))
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    matrix = turn @ np.array([[stretch, shear], [0.0, 1.0 / stretch]])
    zoom = float(np.abs(matrix).sum(axis=1).max())
    warm = float(generator.uniform(-0.22, 0.22))
    green = float(generator.uniform(-0.1, 0.1))
    return Camera(
        matrix=matrix / zoom,
        zoom=zoom,
        gains=np.array([1 + warm, 1 + green, 1 - warm]),
        saturation=float(generator.uniform(0.55, 1.25)),
        gamma=float(np.exp(generator.uniform(-0.3, 0.3))),
        blur_px=float(generator.uniform(0.0, 0.9)),
        vignette=float(generator.uniform(0.0, 0.5)),
        exposure=float(generator.uniform(-28, 28)),
        contrast=float(np.exp(generator.uniform(-0.2, 0.25))),
        noise=float(generator.uniform(0.2, 1.6)),
    )


# ---- the place -----------------------------------------------------------------------------------


def draw_wall(generator: np.random.Generator, size_px: int, subject: float) -> Image.Image:
    """A wall with what hangs on it or stands before it, RGB, as large as `draw_background`'s.

    Args:
        subject: Brightness of what has to be seen before it, 0 to 255; the wall's differs.
    """
    picture = draw_background(generator, size_px, float(generator.uniform(0.2, 1.8)))
    draw = ImageDraw.Draw(picture)
    size = picture.width
    tint = generator.normal(0.0, 26.0, 3)
    light = (subject + generator.uniform(50, 140)) % 200 + 20
    if generator.random() < 0.5:  # boards or tiles
        step = int(size_px * generator.uniform(0.12, 0.4))
        shade = _colour(light + generator.choice([-32, 32]) + tint)
        width = max(1, size_px // 48)
        for place in range(int(generator.integers(step)), size, step):
            draw.line((0, place, size, place), fill=shade, width=width)
            if step > 0.2 * size_px:
                draw.line((place, 0, place, size), fill=shade, width=width)
    for _ in range(int(generator.integers(2, 9))):  # windows, banners, pictures, people
        wide, high = size_px * generator.uniform(0.12, 0.7, 2)
        left, top = generator.uniform(0.1 * size, 0.8 * size, 2)
        colour = _colour(generator.uniform(25, 230) + generator.normal(0.0, 40.0, 3))
        box = (float(left), float(top), float(left + wide), float(top + high))
        if generator.random() < 0.75:
            draw.rectangle(box, fill=colour)
        else:
            draw.ellipse(box, fill=colour)
    wash = Image.new("RGB", picture.size, _colour(light + tint))
    return Image.blend(picture, wash, float(generator.uniform(0.15, 0.55)))


def _colour(values: np.ndarray) -> Colour:
    """The nearest colour."""
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue
