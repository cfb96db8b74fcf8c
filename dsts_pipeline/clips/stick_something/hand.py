"""A hand and forearm that reach into the picture from outside of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsts_pipeline.clips.stick_something.things import Colour, Piece, ellipse, limb, shade

_PALM, _FINGER = 0.062, 0.016


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


def draw_hand(tip: Tip, skin: Colour, sleeve: Colour) -> list[Piece]:
    """Sleeve, forearm, palm and four fingers, the fingertips at `tip`."""
    point, root = np.array([tip.x, tip.y]), np.array(tip.root)
    away = root - point
    away = away / max(float(np.hypot(away[0], away[1])), 1e-6)
    side = np.array([-away[1], away[0]])
    palm = point + 0.1 * away
    wrist = point + 0.17 * away
    cuff = point + 0.3 * away
    pieces = [
        Piece(limb(root, cuff, 0.085, 0.062), sleeve),
        Piece(limb(cuff, wrist, 0.05, 0.042), skin),
        Piece(limb(wrist, palm, 0.042, 0.05), skin),
        Piece(ellipse(palm[0], palm[1], _PALM, _PALM), skin),
    ]
    spread = 0.05 * (1.0 - 0.55 * tip.grip)
    for number, offset in enumerate((-1.15, -0.4, 0.35, 1.1)):
        end = point + side * spread * offset - away * 0.012 * (1.0 - abs(offset))
        start = palm + side * 0.042 * offset
        tone = shade(skin, 0.86 if number % 2 else 0.96)
        pieces.append(Piece(limb(start, end, _FINGER, 0.8 * _FINGER), tone))
        pieces.append(Piece(ellipse(end[0], end[1], 0.8 * _FINGER, 0.8 * _FINGER), tone))
    return pieces
