"""Stick something as motion: the 24 classes, a random plan of a clip, what is where at one time.

Classes are written as Something-Something v2 writes its templates, and labels follow the alphabet.
Most classes have a twin that differs in direction, in order or in one small detail; those whose
twin differs in order alone are the twin's motion run backwards. A mirrored picture of some shows
another class (`FLIP_PAIRS`). Lengths are in frames (the picture is 1 wide and 1 high, its middle
the origin, y up), times in parts of the clip (0 first frame, 1 last).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.stick.groups import by_habit
from dsts_pipeline.stick.rendering import Colour, ramp
from dsts_pipeline.stick.something_groups import Actor
from dsts_pipeline.stick.something_things import (
    PALETTE,
    SKINS,
    Thing,
    Tip,
    draw_thing_of,
    stray,
)

TEMPLATES: tuple[str, ...] = (
    "Closing [something]",
    "Covering [something] with [something]",
    "Moving [something] and [something] away from each other",
    "Moving [something] and [something] closer to each other",
    "Opening [something]",
    "Picking [something] up",
    "Pouring [something] into [something]",
    "Pouring [something] into [something] until it overflows",
    "Pretending to pick [something] up",
    "Pretending to pour [something] out of [something], but [something] is empty",
    "Pretending to turn [something] upside down",
    "Pulling [something] from left to right",
    "Pulling [something] from right to left",
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
    "Putting [something] into [something]",
    "Putting [something] next to [something]",
    "Putting [something] onto [something]",
    "Taking [something] out of [something]",
    "Trying to pour [something] into [something], but missing so it spills next to it",
    "Turning [something] upside down",
    "Turning the camera left while filming [something]",
    "Turning the camera right while filming [something]",
    "Uncovering [something]",
)
CLASS_NAMES: tuple[str, ...] = tuple(
    template.replace("[something]", "something") for template in TEMPLATES
)

# Classes that are each other's mirror image.
FLIP_PAIRS: tuple[tuple[int, int], ...] = ((11, 12), (13, 14), (21, 22))


def flip_label(label: int) -> int:
    """The class that the mirror image of a clip of class `label` shows.

    >>> flip_label(11), flip_label(12), flip_label(0)
    (12, 11, 0)
    """
    return FlipRule("label_mapped", FLIP_PAIRS).map_label(label)


# ---- what varies between two clips of one class --------------------------------------------------

_LIQUIDS: dict[str, Colour] = {
    "water": (95, 165, 235),
    "juice": (240, 150, 40),
    "milk": (240, 240, 235),
    "tea": (150, 75, 25),
    "syrup": (200, 40, 70),
}


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
        wobble, tremor: Phase of the small movements of a hand, radians, and amplitude.
        hand_size, pace: Of the actor, see `something_groups.Actor`.
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
    tremor: float = 0.005
    hand_size: float = 1.0
    pace: float = 1.0


def draw_plan(
    label: int,
    generator: np.random.Generator,
    *,
    actor_kinds: tuple[str, ...],
    other_kinds: tuple[str, ...],
    difficulty: float,
    actor: Actor | None = None,
) -> Plan:
    """Draw the free variables of a clip of class `label`, as an actor does it if there is one."""

    def between(name: str, low: float, high: float) -> float:
        drawn = float(generator.uniform(low, high))
        return drawn if actor is None else by_habit(drawn, low, high, actor.habits[name])

    def draw_thing(kinds: tuple[str, ...]) -> Thing:
        if actor is None:
            return draw_thing_of(kinds, generator, difficulty)
        return draw_thing_of(kinds, generator, difficulty, actor.household, actor.thing_size)

    liquid = list(_LIQUIDS)[int(generator.integers(len(_LIQUIDS)))]
    skin = SKINS[int(generator.integers(len(SKINS)))]
    sleeve = list(PALETTE.values())[int(generator.integers(len(PALETTE)))]
    if actor is not None:
        skin = actor.skin
        sleeve = actor.sleeve
    plan = Plan(
        label=label,
        actor=draw_thing(actor_kinds),
        other=draw_thing(other_kinds),
        x=between("x", -0.07, 0.07),
        y=between("y", -0.34, -0.24),
        side=1 if generator.random() < 0.5 else -1,
        reach=between("reach", 0.0, 1.0),
        lift=between("lift", 0.26, 0.4),
        start=between("start", 0.14, 0.26),
        end=between("end", 0.68, 0.82),
        root=(1.0 if generator.random() < 0.5 else -1.0, between("root", 0.0, 1.0)),
        level=between("level", 0.45, 0.75),
        liquid=stray(_LIQUIDS[liquid], generator, difficulty),
        liquid_name=liquid,
        skin=stray(skin, generator, difficulty),
        sleeve=stray(sleeve, generator, difficulty),
        wobble=float(generator.uniform(0.0, 2 * np.pi)),
    )
    if actor is None:
        return plan
    return replace(
        plan,
        side=actor.side,
        root=(actor.root_side, plan.root[1]),
        tremor=actor.tremor,
        hand_size=actor.hand_size,
        pace=actor.pace,
    )


# ---- motion --------------------------------------------------------------------------------------

LID_OPEN = 1.9  # radians
_OUTSIDE = 0.95


@dataclass(frozen=True)
class Pose:
    """Middle of an object's base, and its turn about its centre in radians."""

    x: float
    y: float
    angle: float = 0.0


@dataclass(frozen=True)
class State:
    """All that moves.

    Attributes:
        actor: The object that is handled.
        other: The second object, or None.
        tips: Hands in the picture.
        lid: 0 closed, 1 open.
        level: Of the liquid, in parts of the glass.
        spill: Liquid beside the glass, left and right, 0 to 1.
        stream_x: Where liquid falls, or None.
        camera_x: Where the camera looks.
    """

    actor: Pose
    other: Pose | None = None
    tips: tuple[Tip, ...] = ()
    lid: float = 0.0
    level: float = 0.0
    spill: tuple[float, float] = (0.0, 0.0)
    stream_x: float | None = None
    camera_x: float = 0.0


def state_at(plan: Plan, time: float) -> State:
    """The state of the planned clip at `time` (0 first frame, 1 last)."""
    return _ACTIONS[plan.label](plan, time**plan.pace)


def _mix(first: float, second: float, share: float) -> float:
    return first + (second - first) * share


def _tip(
    plan: Plan, time: float, contact: tuple[float, float], root: tuple[float, float], come: float
) -> Tip:
    """Fingertips on the way from `root` (come = 0) to `contact` (come = 1), never quite still."""
    sway = plan.tremor * np.sin(4 * np.pi * time + plan.wobble)
    x, y = _mix(root[0], contact[0], come), _mix(root[1], contact[1], come)
    return Tip(x + sway, y + 0.6 * sway, root, grip=ramp(come, 0.8, 1.0))


def _come_and_go(plan: Plan, time: float) -> float:
    """Presence of a hand that arrives before the action and leaves after it."""
    return ramp(time, 0.0, plan.start) * (1.0 - ramp(time, plan.end + 0.02, 1.0))


def _from_above(plan: Plan) -> tuple[float, float]:
    """A root to the left or right, above the things on the table."""
    return plan.root[0] * _OUTSIDE, 0.15 + 0.5 * plan.root[1]


def _backwards(plan: Plan, time: float, *, action: Callable[[Plan, float], State]) -> State:
    """The same motion from its end to its beginning."""
    return action(replace(plan, start=1.0 - plan.end, end=1.0 - plan.start), 1.0 - time)


def _drag(plan: Plan, time: float, *, direction: int, hand_side: int) -> State:
    """Along the table; the hand is behind the object (pushing) or ahead of it (pulling)."""
    half_way = 0.17 + 0.1 * plan.reach
    share = ramp(time, plan.start, plan.end)
    x = plan.x + direction * half_way * (2 * share - 1)
    contact = (x + hand_side * 0.5 * plan.actor.width, plan.y + 0.5 * plan.actor.height)
    root = (contact[0] + hand_side * (0.1 + 0.4 * plan.root[1]), plan.root[0] * _OUTSIDE)
    tip = _tip(plan, time, contact, root, _come_and_go(plan, time))
    return State(Pose(x, plan.y), tips=(tip,))


def _pick(plan: Plan, time: float, *, pretend: bool) -> State:
    """A hand grips from above and rises, with the object or without it."""
    rise = plan.lift * ramp(time, plan.start + 0.08, plan.end)
    contact = (plan.x, plan.y + rise + 0.85 * plan.actor.height)
    come = ramp(time, 0.0, plan.start)
    tip = _tip(plan, time, contact, _from_above(plan), come)
    return State(Pose(plan.x, plan.y + (0.0 if pretend else rise)), tips=(tip,))


def _carry(plan: Plan, time: float, target: Pose) -> tuple[Pose, Tip]:
    """Something is brought from outside, over the target, put down and let go."""
    share = ramp(time, 0.0, plan.end)
    root = _from_above(plan)
    height = max(target.y, plan.y) + plan.lift
    x = _mix(target.x + 0.62 * plan.root[0], target.x, ramp(share, 0.0, 0.6))
    y = _mix(height, target.y, ramp(share, 0.5, 1.0))
    leave = ramp(time, plan.end + 0.02, 1.0)
    contact = (x, y + 0.85 * plan.actor.height)
    return Pose(x, y), _tip(plan, time, contact, root, 1.0 - leave)


def _put(plan: Plan, time: float, *, beside: bool) -> State:
    other = Pose(plan.x - 0.1 * plan.side, plan.y)
    target = Pose(other.x, plan.y + plan.other.height)
    if beside:
        gap = 0.5 * (plan.actor.width + plan.other.width) + 0.02 + 0.06 * plan.reach
        target = Pose(other.x + plan.side * gap, plan.y)
    pose, tip = _carry(plan, time, target)
    return State(pose, other, (tip,))


def _put_into(plan: Plan, time: float) -> State:
    pose, tip = _carry(plan, time, Pose(plan.x, plan.y + 0.03))
    return State(pose, Pose(plan.x, plan.y), (tip,))


def _cover(plan: Plan, time: float) -> State:
    """`other` is the cover: it comes from outside and sinks over the object."""
    cover, tip = _carry(plan, time, Pose(plan.x, plan.y))
    return State(Pose(plan.x, plan.y), cover, (replace(tip, y=tip.y + 0.04),))


def _approach(plan: Plan, time: float) -> State:
    """Two hands move two objects together."""
    near = 0.5 * (plan.actor.width + plan.other.width) + 0.015
    distance = _mix(0.42 + 0.1 * plan.reach, near, ramp(time, plan.start, plan.end))
    left = Pose(plan.x - 0.5 * distance, plan.y)
    right = Pose(plan.x + 0.5 * distance, plan.y)
    tips = []
    for side, pose, thing in ((-1, left, plan.actor), (1, right, plan.other)):
        contact = (pose.x + side * 0.45 * thing.width, plan.y + 0.6 * thing.height)
        root = (side * (0.5 + 0.4 * plan.root[1]), plan.root[0] * _OUTSIDE)
        tips.append(_tip(plan, time, contact, root, _come_and_go(plan, time)))
    return State(left, right, tuple(tips))


def _open(plan: Plan, time: float) -> State:
    """A lid hinged at `side` swings up; the hand is at its free edge."""
    lid = ramp(time, plan.start, plan.end)
    width = plan.actor.width
    top = plan.y + plan.actor.height
    angle = LID_OPEN * lid
    edge = (
        plan.x + plan.side * width * (0.5 - np.cos(angle)),
        top + width * np.sin(angle) + 0.01,
    )
    root = (-plan.side * (0.2 + 0.6 * plan.root[1]), _OUTSIDE)
    tip = _tip(plan, time, edge, root, _come_and_go(plan, time))
    return State(Pose(plan.x, plan.y), tips=(tip,), lid=lid)


def _turn_over(plan: Plan, time: float, *, pretend: bool) -> State:
    """Lifted a little and turned: all the way, or part of it and back."""
    share = ramp(time, plan.start, plan.end)
    there_and_back = np.sin(np.pi * share)
    angle = (0.5 + 0.5 * plan.reach) * there_and_back if pretend else np.pi * share
    y = plan.y + 0.14 * there_and_back
    contact = (plan.x + plan.side * 0.45 * plan.actor.width, y + 0.5 * plan.actor.height)
    root = (plan.side * _OUTSIDE, -0.2 + 0.7 * plan.root[1])
    tip = _tip(plan, time, contact, root, _come_and_go(plan, time))
    return State(Pose(plan.x, y, -plan.side * angle), tips=(tip,))


def _pour(plan: Plan, time: float, *, outcome: str) -> State:
    """A vessel is tilted over a glass: "fill", "overflow", "miss" or "empty"."""
    glass = Pose(plan.x - 0.1 * plan.side, plan.y)
    fall_x = glass.x
    if outcome == "miss":
        fall_x += plan.side * (0.5 * plan.other.width + 0.045)
    source = _pour_pose(plan, fall_x, plan.y + plan.other.height + 0.06, time)
    done = ramp(time, plan.start + 0.1, plan.end)
    first = 0.06 + 0.2 * plan.reach
    flowing = outcome != "empty" and plan.start + 0.1 < time < plan.end
    level = first
    over = (0.0, 0.0)
    if outcome == "fill":
        level = _mix(first, plan.level, done)
    elif outcome == "overflow":
        level = _mix(first, 1.0, min(1.0, done / 0.55))
        run_over = ramp(done, 0.5, 1.0)
        over = (run_over, run_over)
    elif outcome == "miss":
        over = (0.0, done) if plan.side > 0 else (done, 0.0)
    contact = (source.x + 0.3 * plan.side * plan.actor.width, source.y + 0.1)
    tip = Tip(*contact, (plan.side * _OUTSIDE, 0.1 + 0.5 * plan.root[1]), grip=1.0)
    stream_x = fall_x if flowing else None
    return State(source, glass, (tip,), level=level, spill=over, stream_x=stream_x)


def _pour_pose(plan: Plan, lip_x: float, lip_y: float, time: float) -> Pose:
    """Pose of the vessel; once it is tilted, its lip is at (lip_x, lip_y)."""
    tilt = 1.95 * ramp(time, plan.start, plan.start + 0.1)
    tilt *= 1.0 - ramp(time, plan.end, min(plan.end + 0.12, 1.0))
    thing = plan.actor
    angle = plan.side * 1.95
    lip = np.array([-plan.side * (0.2 if thing.kind == "bottle" else 0.45) * thing.width, 0.0])
    lip[1] = 0.5 * thing.height
    c, s = np.cos(angle), np.sin(angle)
    centre = np.array([lip_x, lip_y]) - np.array([[c, -s], [s, c]]) @ lip
    away = 0.6 * plan.side * (1.0 - ramp(time, 0.0, plan.start))
    return Pose(centre[0] + away, centre[1] - 0.5 * thing.height, plan.side * tilt)


def _turn_camera(plan: Plan, time: float, *, direction: int) -> State:
    """The camera turns to the left (-1) or right (+1): the scene moves the other way."""
    way = 0.2 + 0.12 * plan.reach
    share = ramp(time, 0.4 * plan.start, 1.0 - 0.4 * (1.0 - plan.end))
    neighbour = Pose(plan.x + 0.3 * plan.side, plan.y + 0.05)
    camera_x = plan.x + direction * way * (2 * share - 1)
    return State(Pose(plan.x, plan.y), neighbour, camera_x=camera_x)


_ACTIONS: dict[int, Callable[[Plan, float], State]] = {
    0: partial(_backwards, action=_open),
    1: _cover,
    2: partial(_backwards, action=_approach),
    3: _approach,
    4: _open,
    5: partial(_pick, pretend=False),
    6: partial(_pour, outcome="fill"),
    7: partial(_pour, outcome="overflow"),
    8: partial(_pick, pretend=True),
    9: partial(_pour, outcome="empty"),
    10: partial(_turn_over, pretend=True),
    11: partial(_drag, direction=1, hand_side=1),
    12: partial(_drag, direction=-1, hand_side=-1),
    13: partial(_drag, direction=1, hand_side=-1),
    14: partial(_drag, direction=-1, hand_side=1),
    15: _put_into,
    16: partial(_put, beside=True),
    17: partial(_put, beside=False),
    18: partial(_backwards, action=_put_into),
    19: partial(_pour, outcome="miss"),
    20: partial(_turn_over, pretend=False),
    21: partial(_turn_camera, direction=-1),
    22: partial(_turn_camera, direction=1),
    23: partial(_backwards, action=_cover),
}
