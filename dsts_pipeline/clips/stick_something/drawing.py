"""A plan and its state at one instant -> the pieces to fill, back to front.

Boxes with lids, containers, covers and glasses are drawn here, since they have a part behind what
they hold and one in front of it; plain objects and hands have files of their own.
"""

from __future__ import annotations

import numpy as np

from dsts_pipeline.clips.stick_something.hand import draw_hand
from dsts_pipeline.clips.stick_something.motion import LID_OPEN, Pose, State
from dsts_pipeline.clips.stick_something.plan import Plan
from dsts_pipeline.clips.stick_something.things import (
    Colour,
    Piece,
    Thing,
    draw_shadow,
    draw_thing,
    ellipse,
    limb,
    rectangle,
    shade,
)

_LIDDED, _CONTAINED, _COVERED = (0, 4), (15, 18), (1, 23)
_POURED = (6, 7, 9, 19)
_GLASS: Colour = (126, 142, 158)


def draw_action(plan: Plan, state: State, table: Colour) -> list[Piece]:
    """Everything that has a part in the action, hands last."""
    if plan.label in _LIDDED:
        pieces = _draw_lidded(plan.actor, state.actor, state.lid, plan.side, table)
    elif plan.label in _CONTAINED:
        pieces = _draw_contained(plan, state, table)
    elif plan.label in _COVERED:
        pieces = _draw_covered(plan, state, table)
    elif plan.label in _POURED:
        pieces = _draw_poured(plan, state, table)
    else:
        pieces = _draw_plain(plan, state, table)
    for tip in state.tips:
        pieces += draw_hand(tip, plan.skin, plan.sleeve)
    return pieces


def _stand(thing: Thing, pose: Pose) -> list[Piece]:
    return draw_thing(thing, pose.x, pose.y, pose.angle)


def _draw_plain(plan: Plan, state: State, table: Colour) -> list[Piece]:
    pieces = draw_shadow(plan.actor, state.actor.x, plan.y, table)
    if state.other is not None:
        pieces += draw_shadow(plan.other, state.other.x, state.other.y, table)
        pieces += _stand(plan.other, state.other)
    return pieces + _stand(plan.actor, state.actor)


def _draw_lidded(thing: Thing, pose: Pose, lid: float, side: int, table: Colour) -> list[Piece]:
    """A box seen from the front; its lid is hinged at the left or right edge."""
    half, top = 0.5 * thing.width, pose.y + thing.height
    angle = LID_OPEN * lid
    hinge = np.array([pose.x + side * half, top + 0.008])
    free = hinge + thing.width * np.array([-side * np.cos(angle), np.sin(angle)])
    inside = rectangle(pose.x - half, top - 0.012, pose.x + half, top + 0.028)
    body = rectangle(pose.x - half, pose.y, pose.x + half, top)
    band = rectangle(pose.x - half, pose.y + 0.1 * thing.height, pose.x + half, pose.y + 0.04)
    return [
        *draw_shadow(thing, pose.x, pose.y, table),
        Piece(inside, shade(thing.colour, 0.3)),
        Piece(body, thing.colour),
        Piece(band, shade(thing.colour, 0.8)),
        Piece(limb(hinge, free, 0.02, 0.02), thing.accent),
    ]


def _draw_contained(plan: Plan, state: State, table: Colour) -> list[Piece]:
    """An open container: the far rim, what is in it, the near wall."""
    assert state.other is not None
    x, y = state.other.x, state.other.y
    half, top = 0.5 * plan.other.width, y + plan.other.height
    wall = np.array([[x - 0.8 * half, y], [x + 0.8 * half, y], [x + half, top], [x - half, top]])
    return [
        *draw_shadow(plan.other, x, y, table),
        Piece(ellipse(x, top, half, 0.035), shade(plan.other.colour, 0.4)),
        *_stand(plan.actor, state.actor),
        Piece(wall, plan.other.colour),
        Piece(limb(wall[3], wall[2], 0.008, 0.008), shade(plan.other.colour, 1.25)),
    ]


def _draw_covered(plan: Plan, state: State, table: Colour) -> list[Piece]:
    """A cloth, larger than the object, that hangs from the hand or lies over the object."""
    assert state.other is not None
    x, y = state.other.x, state.other.y
    half, height = 0.5 * plan.actor.width + 0.05, plan.actor.height + 0.03
    hem = [[x + half * s, y - 0.012 * (n % 2)] for n, s in enumerate(np.linspace(1, -1, 9))]
    crown = [[x - 0.72 * half, y + 0.9 * height], [x - 0.4 * half, y + height]]
    crown += [[x + 0.4 * half, y + height], [x + 0.72 * half, y + 0.9 * height]]
    folds = [
        Piece(
            limb(np.array([x + s * half, y]), np.array([x + 0.6 * s * half, y + 0.8 * height]),
                 0.008, 0.004),
            shade(plan.other.colour, 0.78),
        )
        for s in (-0.55, 0.05, 0.6)
    ]  # fmt: skip
    return [
        *draw_shadow(plan.actor, state.actor.x, state.actor.y, table),
        *_stand(plan.actor, state.actor),
        Piece(np.array([*hem, *crown]), plan.other.colour),
        *folds,
    ]


def _draw_poured(plan: Plan, state: State, table: Colour) -> list[Piece]:
    """Puddles, the glass with its liquid, the falling stream, the vessel."""
    assert state.other is not None
    x, y = state.other.x, state.other.y
    half, height = 0.5 * plan.other.width, plan.other.height
    pieces = draw_shadow(plan.other, x, y, table)
    for side, amount in zip((-1, 1), state.spill, strict=True):
        if amount > 0:
            centre = x + side * (half + 0.05)
            pieces.append(
                Piece(ellipse(centre, y - 0.005, 0.03 + 0.09 * amount, 0.035), plan.liquid)
            )
    surface = y + 0.012 + (height - 0.012) * state.level
    pieces += [
        Piece(rectangle(x - half, y, x + half, y + height), shade(_GLASS, 0.6)),
        Piece(rectangle(x - half + 0.012, y + 0.012, x + half - 0.012, y + height), _GLASS),
        Piece(rectangle(x - half + 0.012, y + 0.012, x + half - 0.012, surface), plan.liquid),
    ]
    if min(state.spill) > 0:  # over the rim, down both walls
        for side in (-1, 1):
            wall = x + side * half
            pieces.append(Piece(rectangle(wall - 0.014, y, wall + 0.014, y + height), plan.liquid))
        pieces.append(Piece(ellipse(x, y + height, half + 0.01, 0.016), plan.liquid))
    if state.stream_x is not None:
        inside = abs(state.stream_x - x) < half
        bottom = surface if inside else y - 0.005
        stream = rectangle(
            state.stream_x - 0.011, bottom, state.stream_x + 0.011, y + height + 0.07
        )
        pieces.append(Piece(stream, plan.liquid))
    return pieces + _stand(plan.actor, state.actor)
