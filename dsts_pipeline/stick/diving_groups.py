"""Groups of stick diving: a diver at a venue, filmed by one camera. See `groups`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dsts_pipeline.stick.groups import (
    Camera,
    Habits,
    draw_camera,
    draw_habits,
    draw_wall,
    open_stream,
)
from dsts_pipeline.stick.rendering import Colour


@dataclass(frozen=True)
class Body:
    """Lengths of a diver, in body heights, and how thick the limbs are (1: as usual)."""

    trunk: float = 0.30
    thigh: float = 0.24
    shin: float = 0.22
    foot: float = 0.08
    upper_arm: float = 0.16
    forearm: float = 0.16
    neck: float = 0.10
    shoulder: float = 0.105
    hip: float = 0.062
    chest: float = 0.055
    thickness: float = 1.0
    head: float = 1.0


@dataclass(frozen=True)
class DivingGroup:
    """What the dives of one diver at one venue share.

    Attributes:
        habits: Of the variables of a `DivePlan`.
        colours: RGB 0-255 by body part, and for "board" and "water".
        wall: Background.
        board_thickness, tower_edge: Of the venue, in body heights.
        height_scale: Body height as a share of the frame's height.
        camera_yaw, camera_pitch: Radians; how the camera looks at the diver.
        offset: Framing [2], in frames.
        mirrored: On which side of the board the camera is.
    """

    body: Body
    habits: Habits
    colours: dict[str, Colour]
    wall: Image.Image
    board_thickness: float
    tower_edge: float
    height_scale: float
    camera_yaw: float
    camera_pitch: float
    offset: np.ndarray
    mirrored: bool
    camera: Camera


# Where in the ranges of `diving_motion.draw_plan` habits may be. Dives stay whole and slow enough
# for the direction of their turns to be seen.
_HABITS = {
    "takeoff_time": (-0.7, 1.6),
    "flight_time": (-0.1, 1.1),
    "leap": (-0.5, 1.5),
    "travel": (-0.8, 1.6),
    "over_rotation": (-0.7, 1.7),
    "flexion_scale": (-0.4, 1.3),
    "knee_scale": (-0.3, 1.2),
    "arm_offset": (-0.8, 1.8),
    "twist_start": (-0.5, 1.3),
    "twist_length": (0.2, 1.3),
    "bend_in": (-0.4, 1.5),
    "bend_out": (-0.6, 1.2),
    "lean": (-1.0, 2.0),
}
_SKINS: tuple[Colour, ...] = ((244, 214, 188), (224, 178, 140), (178, 126, 90), (120, 82, 60))
_HAIR: tuple[Colour, ...] = (
    (40, 28, 24),
    (96, 60, 36),
    (196, 160, 90),
    (150, 64, 36),
    (60, 90, 180),
)
_CLOTHES: tuple[Colour, ...] = (
    (225, 60, 60),
    (226, 70, 150),
    (240, 120, 30),
    (240, 205, 60),
    (170, 215, 50),
    (70, 175, 95),
    (40, 190, 190),
    (80, 110, 230),
)
_WATER: tuple[Colour, ...] = ((60, 125, 175), (60, 170, 185), (40, 80, 120), (95, 150, 130))


def draw_group(seed: int, split: str, group: int, size_px: int) -> DivingGroup:
    """Group `group` of a split."""
    generator = open_stream(seed, "stick_diving", split, group)
    colours = _draw_colours(generator)
    return DivingGroup(
        body=_draw_body(generator),
        habits=draw_habits(generator, _HABITS),
        colours=colours,
        wall=draw_wall(generator, size_px, float(np.mean(colours["back"]))),
        board_thickness=float(generator.uniform(0.04, 0.16)),
        tower_edge=float(generator.uniform(-1.3, -0.35)),
        height_scale=float(generator.uniform(0.5, 0.66)),
        camera_yaw=float(generator.uniform(-0.7, 0.7)),
        camera_pitch=float(generator.uniform(-0.4, 0.4)),
        offset=generator.uniform(-0.1, 0.1, 2),
        mirrored=bool(generator.random() < 0.5),
        camera=draw_camera(generator),
    )


def _draw_body(generator: np.random.Generator) -> Body:
    """From a tall thin diver to a short stout one."""

    def about(length: float, spread: float) -> float:
        return length * float(np.exp(generator.uniform(-spread, spread)))

    usual = Body()
    legs = about(1.0, 0.2)
    arms = about(1.0, 0.25)
    return Body(
        trunk=about(usual.trunk, 0.15),
        thigh=legs * usual.thigh,
        shin=legs * about(usual.shin, 0.08),
        foot=about(usual.foot, 0.3),
        upper_arm=arms * usual.upper_arm,
        forearm=arms * about(usual.forearm, 0.08),
        neck=about(usual.neck, 0.1),
        shoulder=about(usual.shoulder, 0.25),
        hip=about(usual.hip, 0.25),
        chest=about(usual.chest, 0.15),
        thickness=about(1.0, 0.35),
        head=about(1.0, 0.25),
    )


def _draw_colours(generator: np.random.Generator) -> dict[str, Colour]:
    """Skin, hair, and clothes that can be told from the skin and from each other."""
    skin = _SKINS[int(generator.integers(len(_SKINS)))]
    hair = _HAIR[int(generator.integers(len(_HAIR)))]
    water = _WATER[int(generator.integers(len(_WATER)))]
    clothes = [c for c in _CLOTHES if np.abs(np.subtract(c, skin)).sum() > 120]
    chosen = generator.choice(len(clothes), 3, replace=False)
    grey = int(generator.uniform(60, 210))
    return {
        "face": skin,
        "hair": hair,
        "chest": clothes[chosen[0]],
        "back": skin,
        "suit": (int(generator.uniform(20, 120)), 40, int(generator.uniform(20, 160))),
        "left_arm": skin,
        "right_arm": clothes[chosen[1]],
        "left_thigh": skin,
        "left_leg": skin,
        "right_thigh": clothes[chosen[2]],
        "right_leg": clothes[chosen[2]],
        "board": (grey, grey, min(grey + 10, 255)),
        "water": water,
    }
