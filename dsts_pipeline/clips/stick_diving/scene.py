"""What surrounds a dive: colours, background, water, camera, exposure and sensor noise.

One `Scene` is drawn per clip from its generator; `difficulty` scales how much each nuisance varies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dsts_pipeline.clips.rendering.picture import draw_background


@dataclass(frozen=True)
class Scene:
    """All that does not depend on the pose.

    Attributes:
        colours: RGB 0-255 by body part, and for "board" and "water".
        background: RGB image of 2.6 x 2.6 frames; the camera wanders over it.
        noise: float32 [size * 2, size * 2, 3], cut at a random place for each frame.
        height_scale: Body height as a share of the frame's height.
        camera_yaw: Radians.
        camera_lag: 0 follows the diver exactly, 1 not at all.
        offset: Constant framing error [2], in frames.
        jitter: Camera shake [num_steps, 2], in frames.
        exposure, contrast: Affine change of all values.
        mirrored: The whole picture is flipped left to right.
    """

    colours: dict[str, tuple[int, int, int]]
    background: Image.Image
    noise: np.ndarray
    height_scale: float
    camera_yaw: float
    camera_lag: float
    offset: np.ndarray
    jitter: np.ndarray
    exposure: float
    contrast: float
    mirrored: bool


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
    shake = generator.normal(0.0, 0.012 * difficulty, (num_frames, 2))
    pan = np.cumsum(generator.normal(0.0, 0.008 * difficulty, (num_frames, 2)), axis=0)
    noise_level = 3.0 + 9.0 * difficulty * generator.random()
    noise = generator.standard_normal((size_px * 2, size_px * 2, 3), dtype=np.float32)
    return Scene(
        colours=_draw_colours(generator, difficulty),
        background=draw_background(generator, size_px, difficulty),
        noise=noise * np.float32(noise_level),
        height_scale=float(generator.uniform(0.52 - 0.06 * difficulty, 0.60)),
        camera_yaw=float(generator.normal(0.0, 0.16 * difficulty)),
        camera_lag=float(generator.uniform(0.0, 0.10 * difficulty)),
        offset=generator.normal(0.0, 0.025 * difficulty, 2),
        jitter=shake + pan,
        exposure=float(generator.normal(0.0, 14.0 * difficulty)),
        contrast=float(np.exp(generator.normal(0.0, 0.14 * difficulty))),
        mirrored=bool(generator.random() < 0.5),
    )


def _draw_colours(
    generator: np.random.Generator, difficulty: float
) -> dict[str, tuple[int, int, int]]:
    base = {
        "face": (240, 205, 170),
        "hair": (50, 32, 26),
        "chest": (225, 60, 60),
        "back": (212, 165, 125),
        "suit": (40, 50, 150),
        "left_arm": (214, 168, 128),
        "right_arm": (238, 200, 60),
        "left_thigh": (206, 160, 122),
        "left_leg": (206, 160, 122),
        "right_thigh": (86, 190, 110),
        "right_leg": (86, 190, 110),
        "board": (150, 150, 158),
        "water": (60, 125, 175),
    }
    light = generator.normal(0.0, 16.0 * difficulty)
    drawn = {}
    for name, colour in base.items():
        own = generator.normal(0.0, 14.0 * difficulty, 3)
        values = np.clip(np.asarray(colour) + light + own, 0, 255).astype(int)
        drawn[name] = (int(values[0]), int(values[1]), int(values[2]))
    return drawn
