"""What a recognizer can be pretrained on, by the name of the renderer.

Enters: seed, name of a random stream, number and size of a clip. Leaves: the bytes of its video
file, what moves in each of its frames, and its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.clips.rendering.encode import encode_mp4, encode_webm
from dsts_pipeline.clips.stick_diving import classes as dives
from dsts_pipeline.clips.stick_diving import dataset as diving
from dsts_pipeline.clips.stick_diving import render as diving_render
from dsts_pipeline.clips.stick_diving import targets as poses
from dsts_pipeline.clips.stick_something import classes as actions
from dsts_pipeline.clips.stick_something import dataset as something
from dsts_pipeline.clips.stick_something import render as something_render
from dsts_pipeline.clips.stick_something import targets as scenes


class Drawn(NamedTuple):
    """One clip: its video file, its label, its targets float32 [T, P]."""

    video: bytes
    label: int
    targets: np.ndarray


@dataclass(frozen=True)
class Subject:
    """A renderer as pretraining sees it.

    Attributes:
        title: What its clips are called in a model card.
        version: Of the renderer.
        num_classes: Labels are 0 to num_classes - 1.
        target_names: What is regressed of every frame.
        mirror_signs: Factors of the targets where a clip is mirrored, [P].
        flipped: The label that a clip of each label shows when mirrored, [num_classes].
        draw: (seed, stream, number, size_px=, num_frames=, difficulty=) -> the clip.
    """

    title: str
    version: int
    num_classes: int
    target_names: tuple[str, ...]
    mirror_signs: np.ndarray
    flipped: np.ndarray
    draw: Callable[..., Drawn]


def get_subject(renderer: str) -> Subject:
    """The subject of that name.

    Raises:
        SettingsError: There is none.
    """
    if renderer not in _SUBJECTS:
        raise SettingsError(
            f"dataset.render.renderer {renderer!r} is unknown; expected one of {sorted(_SUBJECTS)}"
        )
    return _SUBJECTS[renderer]


def _draw_dive(seed: int, stream: str, number: int, **how: Any) -> Drawn:
    dive = diving_render.draw_dive(seed, stream, number, **how)
    video = encode_mp4(diving_render.render_clip(dive))
    return Drawn(video, number % len(dives.VOCABULARY), poses.pose_targets(dive))


def _draw_action(seed: int, stream: str, number: int, **how: Any) -> Drawn:
    action = something_render.draw_clip(seed, stream, number, **how)
    video = encode_webm(something_render.render_clip(action))
    return Drawn(video, action.label, scenes.scene_targets(action))


_SUBJECTS = {
    "stick_diving": Subject(
        title="stick dives",
        version=diving.RENDERER_VERSION,
        num_classes=len(dives.VOCABULARY),
        target_names=poses.TARGET_NAMES,
        mirror_signs=poses.MIRROR_SIGNS,
        flipped=np.arange(len(dives.VOCABULARY)),
        draw=_draw_dive,
    ),
    "stick_something": Subject(
        title="stick something clips",
        version=something.RENDERER_VERSION,
        num_classes=len(actions.CLASS_NAMES),
        target_names=scenes.TARGET_NAMES,
        mirror_signs=scenes.MIRROR_SIGNS,
        flipped=np.array([actions.flip_label(label) for label in range(len(actions.CLASS_NAMES))]),
        draw=_draw_action,
    ),
}
