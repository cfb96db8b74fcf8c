"""Groups of stick something: an actor in a room, filmed by one camera. See `groups`."""

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
from dsts_pipeline.stick.something_things import PALETTE, SKINS, Thing, draw_thing_of


@dataclass(frozen=True)
class Actor:
    """Who acts, and with what: all of a group that annotations may speak of.

    Attributes:
        habits: Of the variables of a `Plan`.
        household: Names of the colours that the things here have.
        thing_size: Factor on their size.
        skin, sleeve: Colours.
        hand_size: 1: as usual.
        pace: 1: as usual; above, the motion starts slowly and ends fast.
        tremor: Amplitude of the small movements of a hand, in frames.
        side, root_side: +1 or -1, as in `Plan`: where neighbours stand, where hands come from.
        mirrored: On which side of the table the camera is.
    """

    habits: Habits
    household: tuple[str, ...]
    thing_size: float
    skin: Colour
    sleeve: Colour
    hand_size: float
    pace: float
    tremor: float
    side: int
    root_side: float
    mirrored: bool


@dataclass(frozen=True)
class Room:
    """What surrounds the actions of a group.

    Attributes:
        table: Colour of the table.
        table_edge: Height of its far edge, in frames.
        clutter: Things at the back of the table, each with the place of its base (x, y).
        zoom: Frames of the picture per frame of the scene.
        offset: Framing [2], in frames.
    """

    wall: Image.Image
    table: Colour
    table_edge: float
    clutter: tuple[tuple[Thing, float, float], ...]
    zoom: float
    offset: np.ndarray
    camera: Camera


# Where in the ranges of `something_motion.draw_plan` habits may be.
_HABITS = {
    "x": (-0.4, 1.4),
    "y": (-0.2, 1.2),
    "reach": (0.1, 0.9),
    "lift": (-0.4, 0.9),
    "start": (-0.5, 1.5),
    "end": (-0.8, 1.2),
    "root": (0.1, 0.9),
    "level": (0.0, 0.9),
}
_CLUTTER = ("cup", "can", "box", "ball", "block", "bottle", "book")


def draw_actor(seed: int, split: str, group: int) -> Actor:
    """The first half of group `group` of a split; it needs no drawing of pictures."""
    generator = open_stream(seed, "stick_something", split, group)

    def pick_side() -> int:
        return 1 if generator.random() < 0.5 else -1

    names = list(PALETTE)
    return Actor(
        habits=draw_habits(generator, _HABITS),
        household=tuple(names[n] for n in generator.choice(len(names), 3, replace=False)),
        thing_size=float(np.exp(generator.uniform(-0.16, 0.14))),
        skin=SKINS[int(generator.integers(len(SKINS)))],
        sleeve=PALETTE[names[int(generator.integers(len(names)))]],
        hand_size=float(np.exp(generator.uniform(-0.3, 0.3))),
        pace=float(np.exp(generator.uniform(-0.45, 0.45))),
        tremor=float(generator.uniform(0.0, 0.016)),
        side=pick_side(),
        root_side=float(pick_side()),
        mirrored=bool(generator.random() < 0.5),
    )


def draw_room(seed: int, split: str, group: int, size_px: int) -> Room:
    """The second half of group `group` of a split."""
    generator = open_stream(seed, "stick_something_room", split, group)
    edge = float(generator.uniform(-0.16, 0.1))
    clutter = []
    for _ in range(int(generator.integers(0, 6))):
        thing = draw_thing_of(_CLUTTER, generator, 1.0)
        x = float(generator.uniform(-0.6, 0.6))
        clutter.append((thing, x, edge - 0.02 - 0.05 * float(generator.random())))
    light = float(generator.uniform(70, 215))
    table = np.clip(light + generator.normal(0.0, 22.0, 3), 25, 240).astype(int).tolist()
    camera = draw_camera(generator)
    return Room(
        wall=draw_wall(generator, size_px, light),
        table=(table[0], table[1], table[2]),
        table_edge=edge,
        clutter=tuple(sorted(clutter, key=lambda found: -found[2])),
        zoom=float(generator.uniform(1.0, 1.25)),
        offset=generator.uniform(-0.075, 0.075, 2),
        camera=camera,
    )
