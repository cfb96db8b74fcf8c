"""What surrounds an action: wall, table, clutter, camera, exposure and sensor noise.

One `Scene` is drawn per clip from its generator; `difficulty` scales how much each nuisance varies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dsts_pipeline.clips.rendering.picture import draw_background
from dsts_pipeline.clips.stick_something.plan import MOVABLE, draw_thing_of
from dsts_pipeline.clips.stick_something.things import Colour, Thing


@dataclass(frozen=True)
class Clutter:
    """A thing that has no part in the action, at the back of the table."""

    thing: Thing
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """All that does not depend on the action.

    Attributes:
        background: RGB image of 2.6 x 2.6 frames.
        table: Colour of the table.
        table_edge: Height of its far edge, in frames.
        clutter: Farthest first.
        zoom: Frames of the picture per frame of the scene.
        offset: Constant framing error [2], in frames.
        jitter: Camera shake [num_frames, 2], in frames.
        exposure, contrast: Affine change of all values.
        noise: float32 [size * 2, size * 2, 3].
    """

    background: Image.Image
    table: Colour
    table_edge: float
    clutter: tuple[Clutter, ...]
    zoom: float
    offset: np.ndarray
    jitter: np.ndarray
    exposure: float
    contrast: float
    noise: np.ndarray


def draw_scene(
    generator: np.random.Generator, *, size_px: int, num_frames: int, difficulty: float
) -> Scene:
    """Draw the nuisances of one clip.

    Args:
        generator: Source of all randomness.
        size_px: Frame height and width.
        num_frames: Frames that the camera's shake is drawn for.
        difficulty: 0 plain, 1 the default, up to 3.
    """
    shake = generator.normal(0.0, 0.005 * difficulty, (num_frames, 2))
    drift = np.cumsum(generator.normal(0.0, 0.004 * difficulty, (num_frames, 2)), axis=0)
    noise_level = 2.0 + 6.0 * difficulty * generator.random()
    noise = generator.standard_normal((size_px * 2, size_px * 2, 3), dtype=np.float32)
    edge = float(generator.uniform(-0.1, 0.02))
    return Scene(
        background=draw_background(generator, size_px, difficulty),
        table=_draw_table(generator),
        table_edge=edge,
        clutter=_draw_clutter(generator, edge, difficulty),
        zoom=float(generator.uniform(1.1, 1.2 + 0.06 * difficulty)),
        offset=generator.normal(0.0, 0.015 * difficulty, 2),
        jitter=shake + drift,
        exposure=float(generator.normal(0.0, 10.0 * difficulty)),
        contrast=float(np.exp(generator.normal(0.0, 0.1 * difficulty))),
        noise=noise * np.float32(noise_level),
    )


def _draw_table(generator: np.random.Generator) -> Colour:
    base = generator.uniform(90, 205)
    warm = generator.uniform(0, 40)
    values = np.clip([base + warm, base + 0.3 * warm, base - 0.7 * warm], 0, 255).astype(int)
    return int(values[0]), int(values[1]), int(values[2])


def _draw_clutter(
    generator: np.random.Generator, edge: float, difficulty: float
) -> tuple[Clutter, ...]:
    """None at difficulty 0, up to four at 2."""
    found = []
    for _ in range(int(generator.integers(0, 1 + int(np.ceil(2 * difficulty))))):
        thing = draw_thing_of((*MOVABLE, "bottle", "book"), generator, difficulty)
        x = float(generator.uniform(-0.55, 0.55))
        found.append(Clutter(thing, x, edge - 0.04 - 0.03 * float(generator.random())))
    return tuple(sorted(found, key=lambda clutter: -clutter.y))
