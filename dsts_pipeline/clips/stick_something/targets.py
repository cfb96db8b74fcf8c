"""The scene of every frame as regression targets, for pretraining only: stage two never sees them.

All are in the picture's frame (after mirroring and the camera's turn), so that each can be told
from the pixels.
"""

from __future__ import annotations

import numpy as np

from dsts_pipeline.clips.stick_something.motion import State
from dsts_pipeline.clips.stick_something.render import Action, clip_states

TARGET_NAMES = (
    "actor_x",  # middle of the base, in units of the picture's width
    "actor_y",
    "actor_sine",  # of its turn
    "actor_cosine",
    "other_seen",  # 1 where there is a second object
    "other_x",
    "other_y",
    "hand_seen",  # 1 where there is a hand; the first one, if there are two
    "hand_x",
    "hand_y",
    "lid",  # 0 closed, 1 open
    "level",  # of the liquid
    "spill",  # liquid beside the glass
    "camera_x",
)
MIRROR_SIGNS = np.array([-1, 1, -1, 1, 1, -1, 1, 1, -1, 1, 1, 1, 1, -1], np.float32)


def scene_targets(action: Action) -> np.ndarray:
    """Targets of all frames, float32 [T, P] with P = len(TARGET_NAMES)."""
    targets = np.array([_targets(state) for state in clip_states(action)], np.float32)
    return targets * MIRROR_SIGNS if action.mirrored else targets


def _targets(state: State) -> list[float]:
    actor, other, camera = state.actor, state.other, state.camera_x
    hand = state.tips[0] if state.tips else None
    return [
        actor.x - camera,
        actor.y,
        float(np.sin(actor.angle)),
        float(np.cos(actor.angle)),
        *((1.0, other.x - camera, other.y) if other else (0.0, 0.0, 0.0)),
        *((1.0, hand.x - camera, hand.y) if hand else (0.0, 0.0, 0.0)),
        state.lid,
        state.level,
        sum(state.spill),
        camera,
    ]
