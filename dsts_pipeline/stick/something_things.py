"""Stick something's objects and hands: what they are, and as flat coloured polygons.

Lengths are in frames (the picture is 1 wide and 1 high, its middle the origin, x right, y up).
Leaves: `Piece`s to be filled in order; later ones cover earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dsts_pipeline.stick.rendering import Colour

PALETTE: dict[str, Colour] = {
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


SKINS: tuple[Colour, ...] = ((238, 198, 168), (214, 164, 126), (160, 112, 80), (104, 72, 54))


@dataclass(frozen=True)
class Piece:
    """A filled polygon: corners [n, 2] (x right, y up)."""

    points: np.ndarray
    colour: Colour


@dataclass(frozen=True)
class Thing:
    """An object's looks.

    Attributes:
        kind: Key of `_KINDS`, or what the action draws itself: "bowl", "glass", "cloth".
        name: What an annotator would write, such as "red cup".
        colour, accent: RGB 0-255 of the body, and of cap, label or stripe.
        width, height: In frames.
    """

    kind: str
    name: str
    colour: Colour
    accent: Colour
    width: float
    height: float


@dataclass(frozen=True)
class Tip:
    """Where the fingertips of a hand are.

    Attributes:
        x, y: In frames.
        root: Point [2] outside of the picture where the forearm comes from.
        grip: 0 spread fingers, 1 closed.
    """

    x: float
    y: float
    root: tuple[float, float]
    grip: float = 0.0


def draw_thing_of(
    kinds: tuple[str, ...],
    generator: np.random.Generator,
    spread: float,
    names: tuple[str, ...] = tuple(PALETTE),
    size: float = 1.0,
) -> Thing:
    """Draw an object.

    Args:
        kinds: What it may be.
        spread: Scales how much colours stray from their names.
        names: Colours that it may have.
        size: Factor on its width and height.
    """
    kind = kinds[int(generator.integers(len(kinds)))]
    first, second = generator.choice(len(names), 2, replace=False)
    width, height, _ = _KINDS[kind]
    scale = size * float(generator.uniform(0.9, 1.15))
    return Thing(
        kind=kind,
        name=f"{names[first]} {kind}",
        colour=stray(PALETTE[names[first]], generator, spread),
        accent=stray(PALETTE[names[second]], generator, spread),
        width=width * scale * float(generator.uniform(0.92, 1.08)),
        height=height * scale,
    )


def stray(colour: Colour, generator: np.random.Generator, spread: float) -> Colour:
    """A colour near the one that is named; `spread` scales how far."""
    values = np.clip(np.asarray(colour) + generator.normal(0.0, 12.0 * spread, 3), 0, 255)
    red, green, blue = (int(value) for value in values)
    return red, green, blue


# ---- shapes --------------------------------------------------------------------------------------


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter (above 1) colour."""
    red, green, blue = (min(255, max(0, int(value * factor))) for value in colour)
    return red, green, blue


def rectangle(left: float, bottom: float, right: float, top: float) -> np.ndarray:
    """Corners of an upright rectangle."""
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top]])


def ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    """Corners of an ellipse drawn as a polygon."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)], axis=1)


def limb(start: np.ndarray, end: np.ndarray, start_half: float, end_half: float) -> np.ndarray:
    """A tapering thick line between two points [2]."""
    along = end - start
    length = max(float(np.hypot(along[0], along[1])), 1e-6)
    normal = np.array([-along[1], along[0]]) / length
    corners = (start + normal * start_half, end + normal * end_half)
    return np.array([*corners, end - normal * end_half, start - normal * start_half])


# ---- plain objects -------------------------------------------------------------------------------


def _cup(thing: Thing) -> list[Piece]:
    w, h = thing.width, thing.height
    handle = ellipse(0.5 * w, 0.5 * h, 0.28 * w, 0.28 * h)
    body = np.array([[-0.36 * w, 0], [0.36 * w, 0], [0.5 * w, h], [-0.5 * w, h]])
    return [
        Piece(handle, shade(thing.colour, 0.8)),
        Piece(ellipse(0.53 * w, 0.5 * h, 0.15 * w, 0.16 * h), shade(thing.colour, 0.35)),
        Piece(body, thing.colour),
        Piece(rectangle(-0.46 * w, 0.66 * h, 0.46 * w, 0.8 * h), thing.accent),
        Piece(ellipse(0, h, 0.5 * w, 0.09 * h), shade(thing.colour, 0.4)),
    ]


def _bottle(thing: Thing) -> list[Piece]:
    w, h = thing.width, thing.height
    outline = [[-0.5, 0], [0.5, 0], [0.5, 0.55], [0.18, 0.76], [0.18, 0.9], [-0.18, 0.9]]
    body = np.array([*outline, [-0.18, 0.76], [-0.5, 0.55]]) * [w, h]
    return [
        Piece(body, thing.colour),
        Piece(rectangle(-0.5 * w, 0.16 * h, 0.5 * w, 0.42 * h), thing.accent),
        Piece(rectangle(-0.22 * w, 0.88 * h, 0.22 * w, h), shade(thing.colour, 0.45)),
    ]


def _can(thing: Thing) -> list[Piece]:
    w, h = thing.width, thing.height
    return [
        Piece(rectangle(-0.5 * w, 0, 0.5 * w, h), thing.colour),
        Piece(rectangle(-0.5 * w, 0.08 * h, 0.5 * w, 0.4 * h), thing.accent),
        Piece(ellipse(0, h, 0.5 * w, 0.1 * h), (205, 205, 210)),
        Piece(ellipse(0.1 * w, h, 0.14 * w, 0.04 * h), (90, 90, 95)),
    ]


def _box(thing: Thing) -> list[Piece]:
    w, h = thing.width, thing.height
    return [
        Piece(rectangle(-0.5 * w, 0, 0.5 * w, h), thing.colour),
        Piece(rectangle(-0.09 * w, 0, 0.09 * w, h), thing.accent),
        Piece(rectangle(-0.5 * w, 0.82 * h, 0.5 * w, h), shade(thing.colour, 1.25)),
    ]


def _ball(thing: Thing) -> list[Piece]:
    r = 0.5 * thing.height
    return [
        Piece(ellipse(0, r, r, r), thing.colour),
        Piece(rectangle(-0.86 * r, 0.75 * r, 0.86 * r, 1.25 * r), thing.accent),
        Piece(ellipse(-0.3 * r, 1.5 * r, 0.2 * r, 0.15 * r), shade(thing.colour, 1.5)),
    ]


def _book(thing: Thing) -> list[Piece]:
    w, h = thing.width, thing.height
    return [
        Piece(rectangle(-0.5 * w, 0, 0.5 * w, h), thing.colour),
        Piece(rectangle(-0.42 * w, 0.18 * h, 0.5 * w, 0.74 * h), (228, 224, 208)),
        Piece(rectangle(-0.5 * w, 0.74 * h, 0.5 * w, h), shade(thing.colour, 1.2)),
    ]


def _block(thing: Thing) -> list[Piece]:
    w, h = thing.width, thing.height
    studs = [
        Piece(rectangle(x * w, 0.8 * h, (x + 0.24) * w, h), shade(thing.colour, 0.75))
        for x in (-0.44, -0.12, 0.2)
    ]
    body = Piece(rectangle(-0.5 * w, 0, 0.5 * w, 0.82 * h), thing.colour)
    return [*studs, body, Piece(rectangle(-0.5 * w, 0, 0.5 * w, 0.2 * h), thing.accent)]


_KINDS: dict[str, tuple[float, float, Callable[[Thing], list[Piece]]]] = {  # width, height
    "cup": (0.17, 0.18, _cup),
    "bottle": (0.12, 0.28, _bottle),
    "can": (0.13, 0.19, _can),
    "box": (0.2, 0.17, _box),
    "ball": (0.17, 0.17, _ball),
    "book": (0.3, 0.075, _book),
    "block": (0.19, 0.13, _block),
}


def draw_thing(thing: Thing, x: float, y: float, angle: float = 0.0) -> list[Piece]:
    """A whole object, the middle of its base at (x, y), counter-clockwise by `angle` radians."""
    _, _, draw = _KINDS[thing.kind]
    centre = np.array([0.0, 0.5 * thing.height])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])  # for rows, about the centre
    move = centre + [x, y]
    return [Piece((piece.points - centre) @ turn + move, piece.colour) for piece in draw(thing)]


def draw_shadow(thing: Thing, x: float, y: float, table: Colour) -> list[Piece]:
    """The dark spot on the table below an object that stands or floats above (x, y)."""
    return [Piece(ellipse(x, y, 0.62 * thing.width, 0.022), shade(table, 0.72))]


# ---- a hand and forearm that reach into the picture ----------------------------------------------

_PALM = 0.062
_FINGER = 0.016


def draw_hand(tip: Tip, skin: Colour, sleeve: Colour, size: float = 1.0) -> list[Piece]:
    """Sleeve, forearm, palm and four fingers, the fingertips at `tip`; `size` 1: as usual."""
    point = np.array([tip.x, tip.y])
    root = np.array(tip.root)
    away = root - point
    away = away / max(float(np.hypot(away[0], away[1])), 1e-6)
    side = np.array([-away[1], away[0]])
    palm = point + size * 0.1 * away
    wrist = point + size * 0.17 * away
    cuff = point + size * 0.3 * away
    pieces = [
        Piece(limb(root, cuff, size * 0.085, size * 0.062), sleeve),
        Piece(limb(cuff, wrist, size * 0.05, size * 0.042), skin),
        Piece(limb(wrist, palm, size * 0.042, size * 0.05), skin),
        Piece(ellipse(palm[0], palm[1], size * _PALM, size * _PALM), skin),
    ]
    finger = size * _FINGER
    spread = size * 0.05 * (1.0 - 0.55 * tip.grip)
    for number, offset in enumerate((-1.15, -0.4, 0.35, 1.1)):
        end = point + side * spread * offset - away * size * 0.012 * (1.0 - abs(offset))
        start = palm + side * size * 0.042 * offset
        tone = shade(skin, 0.86 if number % 2 else 0.96)
        pieces.append(Piece(limb(start, end, finger, 0.8 * finger), tone))
        pieces.append(Piece(ellipse(end[0], end[1], 0.8 * finger, 0.8 * finger), tone))
    return pieces
