"""Objects and hands as flat coloured polygons, in frame units with y up; later ones cover earlier.

Enters: what a thing is and where it stands. Leaves: `Piece`s to be filled in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Piece:
    """A filled polygon: corners [n, 2] (x right, y up)."""

    points: np.ndarray
    colour: Colour


@dataclass(frozen=True)
class Thing:
    """An object's looks.

    Attributes:
        kind: Key of `KINDS`.
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


KINDS: dict[str, Callable[[Thing], list[Piece]]] = {
    "cup": _cup,
    "bottle": _bottle,
    "can": _can,
    "box": _box,
    "ball": _ball,
    "book": _book,
    "block": _block,
}


def place(pieces: list[Piece], thing: Thing, x: float, y: float, angle: float) -> list[Piece]:
    """Stand `pieces` at (x, y), the middle of the base, turned by `angle` about the centre."""
    centre = np.array([0.0, 0.5 * thing.height])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s], [-s, c]])  # for rows
    move = centre + [x, y]
    return [Piece((piece.points - centre) @ turn + move, piece.colour) for piece in pieces]


def draw_thing(thing: Thing, x: float, y: float, angle: float = 0.0) -> list[Piece]:
    """A whole object, counter-clockwise by `angle` radians about its centre."""
    return place(KINDS[thing.kind](thing), thing, x, y, angle)


def draw_shadow(thing: Thing, x: float, y: float, table: Colour) -> list[Piece]:
    """The dark spot on the table below an object that stands or floats above (x, y)."""
    return [Piece(ellipse(x, y, 0.62 * thing.width, 0.022), shade(table, 0.72))]
