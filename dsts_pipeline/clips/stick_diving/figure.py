"""Pose of the figure in, its body parts as shaded 2-D shapes out, back to front.

The figure is asymmetric on purpose, so that facing and twist can be seen in a still: face and chest
panel in front, hair and bare back behind, one arm and leg of another colour than the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsts_pipeline.clips.stick_diving.motion import Pose

# Lengths in body heights.
_TRUNK, _THIGH, _SHIN, _FOOT = 0.30, 0.24, 0.22, 0.08
_UPPER_ARM, _FOREARM, _NECK = 0.16, 0.16, 0.10
_SHOULDER, _HIP, _CHEST = 0.105, 0.062, 0.055


@dataclass(frozen=True)
class Capsule:
    """A thick line: a body part between two projected points.

    Attributes:
        start, end: Points [2] (x, y) in body heights, y up.
        radius: In body heights.
        part: Name of the colour.
        depth: Larger is nearer to the camera.
    """

    start: np.ndarray
    end: np.ndarray
    radius: float
    part: str
    depth: float


def _turn_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _turn_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _direction(angle: float) -> np.ndarray:
    """Unit vector in the body's plane x (front) y (up), `angle` from down towards the front."""
    return np.array([np.sin(angle), -np.cos(angle), 0.0])


def joints(pose: Pose) -> dict[str, np.ndarray]:
    """Joint positions [3] in the body's frame: x front, y up along the trunk, z to its right."""
    curl = 0.25 * min(pose.hip, 2.0)
    up = np.array([np.sin(curl), np.cos(curl), 0.0])
    side = np.array([0.0, 0.0, 1.0])
    pelvis = np.zeros(3)
    neck = pelvis + _TRUNK * up
    points = {"pelvis": pelvis, "neck": neck}
    points["head"] = neck + _NECK * up
    points["face"] = points["head"] + 0.038 * np.array([up[1], -up[0], 0.0])
    thigh = _direction(pose.hip)
    shin = _direction(pose.hip - pose.knee)
    arm = _direction(pose.arm - curl)
    fore = _direction(pose.arm - curl + (0.9 if 0.3 < pose.arm < 1.2 else 0.15))
    for name, sign in (("left", -1.0), ("right", 1.0)):
        hip = pelvis + sign * _HIP * side
        knee = hip + _THIGH * thigh
        ankle = knee + _SHIN * shin
        shoulder = neck + sign * _SHOULDER * side - 0.02 * up
        elbow = shoulder + _UPPER_ARM * arm
        points |= {
            f"{name}_hip": hip,
            f"{name}_knee": knee,
            f"{name}_ankle": ankle,
            f"{name}_toe": ankle + _FOOT * _direction(pose.hip - pose.knee + 0.5),
            f"{name}_shoulder": shoulder,
            f"{name}_elbow": elbow,
            f"{name}_hand": elbow + _FOREARM * fore,
        }
    front = np.array([up[1], -up[0], 0.0])
    points["chest_top"] = neck - 0.06 * up + _CHEST * front
    points["chest_low"] = pelvis + 0.04 * up + _CHEST * front
    return points


def place(pose: Pose, camera_yaw: float) -> dict[str, np.ndarray]:
    """Joints [3] in the camera's frame (x right, y up, z towards the viewer)."""
    # The body's x axis is its front: facing +1 looks along world +x, -1 along -x.
    facing = 0.0 if pose.facing > 0 else np.pi
    turn = _turn_y(camera_yaw) @ _turn_z(pose.somersault) @ _turn_y(facing + pose.twist)
    body = joints(pose)
    middle = (
        0.4 * body["pelvis"]
        + 0.25 * body["neck"]
        + 0.1 * body["head"]
        + 0.125 * (body["left_knee"] + body["right_knee"])
    )
    centre = _turn_y(camera_yaw) @ pose.centre
    return {name: turn @ (point - middle) + centre for name, point in body.items()}


_LIMBS = (
    ("{0}_hip", "{0}_knee", 0.045, "{0}_thigh"),
    ("{0}_knee", "{0}_ankle", 0.035, "{0}_leg"),
    ("{0}_ankle", "{0}_toe", 0.025, "{0}_leg"),
    ("{0}_shoulder", "{0}_elbow", 0.032, "{0}_arm"),
    ("{0}_elbow", "{0}_hand", 0.028, "{0}_arm"),
)


def capsules(placed: dict[str, np.ndarray]) -> list[Capsule]:
    """The visible parts, farthest first."""
    parts: list[Capsule] = []

    def add(start: str, end: str, radius: float, part: str, nearer: float = 0.0) -> None:
        a, b = placed[start], placed[end]
        depth = 0.5 * float(a[2] + b[2]) + nearer
        parts.append(Capsule(a[:2], b[:2], radius, part, depth))

    for side in ("left", "right"):
        for start, end, radius, part in _LIMBS:
            add(start.format(side), end.format(side), radius, part.format(side))
        add(f"{side}_shoulder", f"{side}_hip", 0.055, "back")
    add("pelvis", "neck", 0.075, "back")
    add("left_hip", "right_hip", 0.055, "suit")
    add("chest_top", "chest_low", 0.05, "chest", nearer=0.01)
    add("head", "head", 0.075, "hair")
    add("face", "face", 0.055, "face", nearer=0.02)
    return sorted(parts, key=lambda part: part.depth)
