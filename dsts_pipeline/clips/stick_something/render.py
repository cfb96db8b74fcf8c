"""Plan and scene in, RGB frames uint8 [T, H, W, 3] out.

Everything is a function of (seed, split, index). A clip may be mirrored: then it was planned as the
class whose mirror image is wanted, so that labels always say what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageDraw

from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.clips.rendering.picture import FINE, cut_background, develop
from dsts_pipeline.clips.stick_something.classes import CLASS_NAMES, flip_label
from dsts_pipeline.clips.stick_something.drawing import draw_action
from dsts_pipeline.clips.stick_something.motion import State, state_at
from dsts_pipeline.clips.stick_something.plan import (
    FLAT,
    MOVABLE,
    POURABLE,
    TURNABLE,
    Plan,
    draw_plan,
)
from dsts_pipeline.clips.stick_something.scene import Scene, draw_scene
from dsts_pipeline.clips.stick_something.things import Piece, draw_thing, rectangle

_ACTORS = {6: POURABLE, 7: POURABLE, 9: POURABLE, 19: POURABLE, 10: TURNABLE, 20: TURNABLE}
_ACTORS |= dict.fromkeys((15, 18), ("ball", "block", "can")) | dict.fromkeys((0, 4), ("box",))
_OTHERS = {16: FLAT, 17: FLAT}


@dataclass(frozen=True)
class Action:
    """One clip before it is drawn.

    Attributes:
        label: Class that the finished picture shows.
        plan: As drawn before mirroring; of the mirror class if `mirrored`.
        mirrored: The picture is flipped left to right after drawing.
    """

    label: int
    plan: Plan
    scene: Scene
    mirrored: bool
    size_px: int
    num_frames: int
    seed: int


def draw_clip(
    seed: int,
    split: str,
    index: int,
    *,
    label: int | None = None,
    size_px: int = 96,
    num_frames: int = 24,
    difficulty: float = 1.0,
) -> Action:
    """Draw the clip `index` of `split` under `seed`.

    Args:
        seed: The data set's seed.
        split: Name of the split; splits share no random stream.
        index: Number of the clip in its split.
        label: Class 0 to 23; by default `index` modulo 24, so that classes are balanced.
        size_px: Frame height and width.
        num_frames: Frames in the clip.
        difficulty: Strength of the nuisances, 0 to 3.
    """
    start = plan_clip(seed, split, index, label=label, difficulty=difficulty)
    generator = start.generator
    scene = draw_scene(generator, size_px=size_px, num_frames=num_frames, difficulty=difficulty)
    own_seed = int(generator.integers(1 << 31))
    return Action(start.label, start.plan, scene, start.mirrored, size_px, num_frames, own_seed)


@dataclass(frozen=True)
class PlannedClip:
    """What is drawn first: all that annotations speak of. `generator` goes on from there."""

    label: int
    plan: Plan
    mirrored: bool
    generator: np.random.Generator


def plan_clip(
    seed: int, split: str, index: int, *, label: int | None = None, difficulty: float = 1.0
) -> PlannedClip:
    """The first part of `draw_clip`, a hundred times faster than the whole."""
    generator = np.random.default_rng(derive_seed(seed, "stick_something", split, index))
    shown = index % len(CLASS_NAMES) if label is None else label
    mirrored = bool(generator.random() < 0.5)
    planned = flip_label(shown) if mirrored else shown
    plan = draw_plan(
        planned,
        generator,
        actor_kinds=_ACTORS.get(planned, MOVABLE),
        other_kinds=_OTHERS.get(planned, MOVABLE),
        difficulty=difficulty,
    )
    return PlannedClip(shown, _fit(plan), mirrored, generator)


def _fit(plan: Plan) -> Plan:
    """What an action needs: a roomy box or bowl, a glass below a vessel, a cloth."""
    colour = plan.other.name.split()[0]
    if plan.label in (0, 4):
        return replace(plan, actor=replace(plan.actor, width=0.32, height=0.19))
    if plan.label in (15, 18):
        width = max(0.27, 1.5 * plan.actor.width)
        bowl = replace(plan.other, kind="bowl", name=f"{colour} bowl", width=width, height=0.17)
        return replace(plan, other=bowl)
    if plan.label in (6, 7, 9, 19):
        glass = replace(plan.other, kind="glass", name="glass", width=0.15, height=0.21)
        return replace(plan, other=glass)
    if plan.label in (1, 23):
        return replace(plan, other=replace(plan.other, kind="cloth", name=f"{colour} cloth"))
    return plan


def clip_states(action: Action) -> list[State]:
    """The state in every frame, before mirroring, at the times that `render_clip` draws."""
    return [state_at(action.plan, t) for t in np.linspace(0.0, 1.0, action.num_frames)]


def render_clip(action: Action) -> np.ndarray:
    """All frames of a clip, uint8 [T, H, W, 3], RGB."""
    size, scene = action.size_px, action.scene
    frames = np.empty((action.num_frames, size, size, 3), np.uint8)
    generator = np.random.default_rng(action.seed)
    for number, state in enumerate(clip_states(action)):
        camera = scene.offset + scene.jitter[number] + [state.camera_x, -0.06]
        picture = _draw_frame(action, state, camera)
        if action.mirrored:
            picture = picture[:, ::-1]
        frames[number] = develop(
            picture,
            contrast=scene.contrast,
            exposure=scene.exposure,
            noise=scene.noise,
            generator=generator,
        )
    return frames


def _draw_frame(action: Action, state: State, camera: np.ndarray) -> np.ndarray:
    scene, size = action.scene, action.size_px
    shift = camera * np.array([1.0, -1.0]) * size * scene.zoom
    image = cut_background(scene.background, shift, size)
    draw = ImageDraw.Draw(image)
    pieces = [Piece(rectangle(-3, -3, 3, scene.table_edge), scene.table)]
    for clutter in scene.clutter:
        pieces += draw_thing(clutter.thing, clutter.x, clutter.y)
    pieces += draw_action(action.plan, state, scene.table)
    scale, half = size * scene.zoom * FINE, 0.5 * size * FINE
    for piece in pieces:
        corners = (piece.points - camera) * np.array([scale, -scale]) + half
        draw.polygon(corners.ravel().tolist(), fill=piece.colour)
    return np.array(image.reduce(FINE))
