"""Stick diving as motion: the 48 classes, a random plan of one dive, the figure's pose over time.

A class is [takeoff, somersault, twist, position], as Diving48 writes its vocabulary; somersaults
and twists are counted in halves ("15som" is one and a half). World frame: x from the board to the
open water, y up, z towards the camera; lengths in body heights, times in parts of the clip (0 first
frame, 1 last), angles in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsts_pipeline.stick.groups import Habits, by_habit
from dsts_pipeline.stick.rendering import ramp

WATER_LEVEL = -2.6
_DIVES = (  # of every takeoff
    ("10som", "NoTwis", "STR"),
    ("10som", "NoTwis", "PIKE"),
    ("15som", "NoTwis", "STR"),
    ("15som", "NoTwis", "PIKE"),
    ("15som", "NoTwis", "TUCK"),
    ("20som", "NoTwis", "PIKE"),
    ("20som", "NoTwis", "TUCK"),
    ("25som", "NoTwis", "PIKE"),
    ("25som", "NoTwis", "TUCK"),
    ("15som", "05Twis", "FREE"),
    ("15som", "1Twis", "FREE"),
    ("15som", "15Twis", "FREE"),
)
_TWISTS = {"NoTwis": 0.0, "05Twis": 0.5, "1Twis": 1.0, "15Twis": 1.5}
VOCABULARY: tuple[tuple[str, str, str, str], ...] = tuple(
    (takeoff, *dive) for takeoff in ("Forward", "Back", "Reverse", "Inward") for dive in _DIVES
)
_POSITIONS = {  # hip flexion, knee flexion, arm raise (0 at the side, pi overhead)
    "STR": (0.05, 0.0, 0.1),
    "FREE": (0.05, 0.0, 0.55),
    "PIKE": (1.9, 0.08, 1.5),
    "TUCK": (2.05, 2.25, 0.9),
}


@dataclass(frozen=True)
class DiveClass:
    """What the renderer needs to know of a class.

    Attributes:
        facing: +1 when the diver faces the water at takeoff, -1 when the board.
        spin: +1 when the head first moves towards the water, -1 when towards the board.
        somersaults: Whole turns about the transverse axis.
        twists: Whole turns about the long axis.
        position: "STR", "PIKE", "TUCK" or "FREE".
    """

    facing: int
    spin: int
    somersaults: float
    twists: float
    position: str


def describe_class(label: int) -> DiveClass:
    """The dive of class `label` (0 to 47)."""
    takeoff, somersault, twist, position = VOCABULARY[label]
    return DiveClass(
        facing=1 if takeoff in ("Forward", "Reverse") else -1,
        spin=1 if takeoff in ("Forward", "Back") else -1,
        somersaults=int(somersault.removesuffix("som")) / 10,
        twists=_TWISTS[twist],
        position=position,
    )


@dataclass(frozen=True)
class DivePlan:
    """Everything that varies between two dives of one class (see `draw_plan`)."""

    label: int
    takeoff_time: float
    flight_time: float
    leap: float
    travel: float
    over_rotation: float
    flexion_scale: float
    knee_scale: float
    arm_offset: float
    twist_sign: int
    twist_start: float
    twist_length: float
    bend_in: float
    bend_out: float
    lean: float


@dataclass(frozen=True)
class Pose:
    """The figure at one instant.

    Attributes:
        centre: Centre of mass, [3].
        somersault: Signed turn about z; positive turns the head towards the board (+z rotation).
        twist: Signed turn about the long axis, on top of the facing.
        hip, knee: Flexion, 0 straight.
        arm: Arm raise, 0 at the side, pi overhead.
        facing: +1 or -1, see `DiveClass`.
    """

    centre: np.ndarray
    somersault: float
    twist: float
    hip: float
    knee: float
    arm: float
    facing: int


def draw_plan(label: int, generator: np.random.Generator, habits: Habits | None = None) -> DivePlan:
    """Draw the free variables of a dive of class `label`, near a diver's habits if given."""

    def between(name: str, low: float, high: float) -> float:
        drawn = float(generator.uniform(low, high))
        return drawn if habits is None else by_habit(drawn, low, high, habits[name])

    twist_start = between("twist_start", 0.12, 0.2)
    return DivePlan(
        label=label,
        takeoff_time=between("takeoff_time", 0.07, 0.14),
        flight_time=between("flight_time", 0.74, 0.84),
        leap=between("leap", 0.25, 0.6),
        travel=between("travel", 0.7, 1.3),
        over_rotation=between("over_rotation", -0.16, 0.16),
        flexion_scale=between("flexion_scale", 0.88, 1.06),
        knee_scale=between("knee_scale", 0.85, 1.08),
        arm_offset=between("arm_offset", -0.25, 0.25),
        twist_sign=1 if generator.random() < 0.5 else -1,
        twist_start=twist_start,
        twist_length=between("twist_length", 0.5, 0.62),
        bend_in=between("bend_in", 0.1, 0.18),
        bend_out=between("bend_out", 0.74, 0.84),
        lean=between("lean", -0.08, 0.12),
    )


def _turned_share(u: float) -> float:
    """Share of the whole somersault done at flight share `u`: slow, fast in the middle, slow."""
    u = min(max(u, 0.0), 1.0)
    return 0.55 * u + 0.45 * u * u * (3.0 - 2.0 * u)


def pose_at(plan: DivePlan, time: float) -> Pose:
    """The pose of the planned dive at `time` (0 first frame, 1 last)."""
    dive = describe_class(plan.label)
    u = (time - plan.takeoff_time) / plan.flight_time
    if u < 0.0:
        return _standing(plan, dive, time)
    shape = ramp(u, plan.bend_in - 0.08, plan.bend_in + 0.1)
    shape *= 1.0 - ramp(u, plan.bend_out - 0.05, plan.bend_out + 0.1)
    hip, knee, arm = _POSITIONS[dive.position]
    stretched_arm = np.pi * 0.95
    start_x = 0.12 + plan.travel * u
    drop = plan.leap * 4 * u - (plan.leap * 4 - WATER_LEVEL + 0.45) * u * u
    twist = ramp(u, plan.twist_start, plan.twist_start + plan.twist_length) * dive.twists
    return Pose(
        centre=np.array([start_x, 0.55 + drop, 0.0]),
        somersault=-dive.spin * _turn(dive, plan, u),
        twist=plan.twist_sign * 2 * np.pi * twist,
        hip=shape * hip * plan.flexion_scale,
        knee=shape * knee * plan.knee_scale,
        arm=(1 - shape) * stretched_arm + shape * (arm + plan.arm_offset),
        facing=dive.facing,
    )


def _turn(dive: DiveClass, plan: DivePlan, u: float) -> float:
    total = 2 * np.pi * dive.somersaults + plan.over_rotation
    return plan.lean * min(u * 8, 1.0) + (total - plan.lean) * _turned_share(u)


def _standing(plan: DivePlan, dive: DiveClass, time: float) -> Pose:
    """On the board: a crouch that stretches, arms swinging up."""
    phase = time / plan.takeoff_time
    crouch = 0.5 * np.sin(np.pi * min(phase, 1.0))
    return Pose(
        centre=np.array([0.12, 0.55 - 0.12 * crouch, 0.0]),
        somersault=0.0,
        twist=0.0,
        hip=crouch,
        knee=1.2 * crouch,
        arm=0.3 + 2.6 * phase,
        facing=dive.facing,
    )
