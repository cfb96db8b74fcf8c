"""Pose of every frame as regression targets, for pretraining only: stage two never sees them.

All are in the picture's frame (after mirroring), so that each can be told from the pixels.
"""

from __future__ import annotations

import numpy as np

from dsts_pipeline.clips.stick_diving.figure import place
from dsts_pipeline.clips.stick_diving.motion import Pose
from dsts_pipeline.clips.stick_diving.render import Dive, clip_poses

TARGET_NAMES = (
    "axis_x",  # unit vector pelvis to neck
    "axis_y",
    "axis_z",
    "front_x",  # unit vector out of the chest
    "front_y",
    "front_z",
    "right_x",  # unit vector from the left to the right shoulder
    "right_y",
    "right_z",
    "hip",  # flexion, radians
    "knee",
    "spin_rate",  # signed turn in the picture since the frame before, half turns
    "twist_rate",  # unsigned turn about the long axis since the frame before, half turns
)
MIRROR_SIGNS = np.array([-1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, -1, 1], np.float32)


def pose_targets(dive: Dive) -> np.ndarray:
    """Targets of all frames, float32 [T, P] with P = len(TARGET_NAMES)."""
    poses = clip_poses(dive)
    rows = np.stack([_still_targets(pose, dive.scene.camera_yaw) for pose in poses])
    spin = np.diff([pose.somersault for pose in poses], prepend=poses[0].somersault) / np.pi
    twist = np.abs(np.diff([pose.twist for pose in poses], prepend=poses[0].twist)) / np.pi
    targets = np.concatenate([rows, spin[:, None], twist[:, None]], axis=1).astype(np.float32)
    return targets * MIRROR_SIGNS if dive.scene.mirrored else targets


def _still_targets(pose: Pose, camera_yaw: float) -> np.ndarray:
    placed = place(pose, camera_yaw)
    axis = _unit(placed["neck"] - placed["pelvis"])
    right = _unit(placed["right_shoulder"] - placed["left_shoulder"])
    return np.concatenate([axis, np.cross(axis, right), right, [pose.hip, pose.knee]])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
