"""Everything that varies between two clips of one class: objects, places, timing.

Lengths are in frames (the picture is 1 wide and 1 high, its middle the origin, y up), times in
parts of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsts_pipeline.clips.stick_something.things import Colour, Thing

_PALETTE: dict[str, Colour] = {
    "red": (196, 62, 56),
    "blue": (62, 98, 190),
    "green": (74, 150, 84),
    "yellow": (224, 192, 72),
    "white": (226, 224, 216),
    "black": (52, 52, 58),
    "orange": (224, 130, 56),
    "purple": (132, 80, 160),
    "brown": (134, 94, 64),
    "pink": (226, 140, 165),
}
_LIQUIDS: dict[str, Colour] = {
    "water": (95, 165, 235),
    "juice": (240, 150, 40),
    "milk": (240, 240, 235),
    "tea": (150, 75, 25),
    "syrup": (200, 40, 70),
}
_SIZES = {  # kind: width, height
    "cup": (0.17, 0.18),
    "bottle": (0.12, 0.28),
    "can": (0.13, 0.19),
    "box": (0.2, 0.17),
    "ball": (0.17, 0.17),
    "book": (0.3, 0.075),
    "block": (0.19, 0.13),
}
MOVABLE = ("cup", "can", "box", "ball", "block")
TURNABLE = ("cup", "bottle", "can", "block")
POURABLE = ("cup", "bottle")
FLAT = ("book", "box")
_SKINS: tuple[Colour, ...] = ((238, 198, 168), (214, 164, 126), (160, 112, 80), (104, 72, 54))


@dataclass(frozen=True)
class Plan:
    """One clip's free variables.

    Attributes:
        label: Class.
        actor: The object that is handled (for pouring: the vessel that is poured out of).
        other: The second object, or the one that is poured into; a cover's look for covering.
        x, y: Where the action takes place: the middle of the table's near part, standing height.
        side: +1 or -1: which side a hand, a hinge or a neighbour is on.
        reach: 0 to 1, how far movements go.
        lift: Height that things are lifted to.
        start, end: Times at which the action begins and ends.
        root: Where the first hand's forearm comes from, relative to the action: +-1 and 0 to 1.
        level: Of the liquid at the end, in parts of the glass.
        liquid, liquid_name: Colour and name of what is poured.
        skin, sleeve: Colours.
        wobble: Phase of the small movements of a hand, radians.
    """

    label: int
    actor: Thing
    other: Thing
    x: float
    y: float
    side: int
    reach: float
    lift: float
    start: float
    end: float
    root: tuple[float, float]
    level: float
    liquid: Colour
    liquid_name: str
    skin: Colour
    sleeve: Colour
    wobble: float


def draw_thing_of(kinds: tuple[str, ...], generator: np.random.Generator, spread: float) -> Thing:
    """Draw an object of one of `kinds`; `spread` scales how much colours stray from their names."""
    kind = kinds[int(generator.integers(len(kinds)))]
    names = list(_PALETTE)
    first, second = generator.choice(len(names), 2, replace=False)
    width, height = _SIZES[kind]
    scale = float(generator.uniform(0.9, 1.15))
    return Thing(
        kind=kind,
        name=f"{names[first]} {kind}",
        colour=_stray(_PALETTE[names[first]], generator, spread),
        accent=_stray(_PALETTE[names[second]], generator, spread),
        width=width * scale * float(generator.uniform(0.92, 1.08)),
        height=height * scale,
    )


def _stray(colour: Colour, generator: np.random.Generator, spread: float) -> Colour:
    values = np.clip(np.asarray(colour) + generator.normal(0.0, 12.0 * spread, 3), 0, 255)
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def draw_plan(
    label: int,
    generator: np.random.Generator,
    *,
    actor_kinds: tuple[str, ...],
    other_kinds: tuple[str, ...],
    difficulty: float,
) -> Plan:
    """Draw the free variables of a clip of class `label`."""

    def between(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    liquid = list(_LIQUIDS)[int(generator.integers(len(_LIQUIDS)))]
    skin = _SKINS[int(generator.integers(len(_SKINS)))]
    sleeve = list(_PALETTE.values())[int(generator.integers(len(_PALETTE)))]
    return Plan(
        label=label,
        actor=draw_thing_of(actor_kinds, generator, difficulty),
        other=draw_thing_of(other_kinds, generator, difficulty),
        x=between(-0.07, 0.07),
        y=between(-0.34, -0.24),
        side=1 if generator.random() < 0.5 else -1,
        reach=between(0.0, 1.0),
        lift=between(0.26, 0.4),
        start=between(0.14, 0.26),
        end=between(0.68, 0.82),
        root=(1.0 if generator.random() < 0.5 else -1.0, between(0.0, 1.0)),
        level=between(0.45, 0.75),
        liquid=_stray(_LIQUIDS[liquid], generator, difficulty),
        liquid_name=liquid,
        skin=_stray(skin, generator, difficulty),
        sleeve=_stray(sleeve, generator, difficulty),
        wobble=between(0.0, 2 * np.pi),
    )
