"""Stick something: drawn clips as frames, their targets for pretraining, the data set's files.

Enters: seed, split and number of a clip. Leaves: RGB frames uint8 [T, H, W, 3], what moves in every
frame, and files exactly as Something-Something v2 has them: `20bn-something-something-v2/<id>.webm`
(VP9), and in `labels/`: labels.json (class numbers as text by class name), train.json and
validation.json (items {id, label, template, placeholders}), test.json (items {id}: its labels are
not published). Where there are groups, items {id, label, template, placeholders} have one more key,
"group".

A clip may be mirrored: then it was planned as the class whose mirror image is wanted, so that
labels always say what is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick.groups import WITHIN, group_name, group_of
from dsts_pipeline.stick.rendering import (
    FINE,
    Colour,
    Film,
    Renderer,
    cut_background,
    draw_background,
    encode_webm,
)
from dsts_pipeline.stick.something_groups import Room, draw_actor, draw_room
from dsts_pipeline.stick.something_motion import (
    CLASS_NAMES,
    LID_OPEN,
    TEMPLATES,
    Plan,
    Pose,
    State,
    draw_plan,
    flip_label,
    state_at,
)
from dsts_pipeline.stick.something_things import (
    Piece,
    Thing,
    draw_hand,
    draw_shadow,
    draw_thing,
    draw_thing_of,
    ellipse,
    limb,
    rectangle,
    shade,
)

_LIDDED, _CONTAINED, _COVERED, _POURED = (0, 4), (15, 18), (1, 23), (6, 7, 9, 19)  # classes

# ---- one clip ------------------------------------------------------------------------------------


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
    group: int | None = None,
) -> Action:
    """The clip `index` of `split`, see `Renderer.draw`."""
    start = plan_clip(seed, split, index, label=label, difficulty=difficulty, group=group)
    generator = start.generator
    if group is None:
        scene = _draw_scene(generator, size_px, num_frames, difficulty)
    else:
        scene = _draw_scene(generator, size_px, num_frames, WITHIN * difficulty)
        scene = _put_into_room(scene, draw_room(seed, split, group, size_px))
    own_seed = int(generator.integers(1 << 31))
    return Action(start.label, start.plan, scene, start.mirrored, size_px, num_frames, own_seed)


@dataclass(frozen=True)
class PlannedClip:
    """What is drawn first: all that annotations speak of. `generator` goes on from there."""

    label: int
    plan: Plan
    mirrored: bool
    generator: np.random.Generator


_MOVABLE = ("cup", "can", "box", "ball", "block")
_ACTORS = {  # kinds of things by class
    **dict.fromkeys(_LIDDED, ("box",)),
    **dict.fromkeys(_CONTAINED, ("ball", "block", "can")),
    **dict.fromkeys(_POURED, ("cup", "bottle")),
    **dict.fromkeys((10, 20), ("cup", "bottle", "can", "block")),  # turned upside down
}
_OTHERS = dict.fromkeys((16, 17), ("book", "box"))  # what is flat


def plan_clip(
    seed: int,
    split: str,
    index: int,
    *,
    label: int | None = None,
    difficulty: float = 1.0,
    group: int | None = None,
) -> PlannedClip:
    """The first part of `draw_clip`, a hundred times faster than the whole."""
    generator = np.random.default_rng(derive_seed(seed, "stick_something", split, index))
    shown = index % len(CLASS_NAMES) if label is None else label
    mirrored = bool(generator.random() < 0.5)
    actor = None if group is None else draw_actor(seed, split, group)
    if actor is not None:
        mirrored = actor.mirrored
        difficulty *= WITHIN
    planned = flip_label(shown) if mirrored else shown
    plan = draw_plan(
        planned,
        generator,
        actor_kinds=_ACTORS.get(planned, _MOVABLE),
        other_kinds=_OTHERS.get(planned, _MOVABLE),
        difficulty=difficulty,
        actor=actor,
    )
    return PlannedClip(shown, _fit(plan), mirrored, generator)


def _fit(plan: Plan) -> Plan:
    """What an action needs: a roomy box or bowl, a glass below a vessel, a cloth."""
    colour = plan.other.name.split()[0]
    if plan.label in _LIDDED:
        return replace(plan, actor=replace(plan.actor, width=0.32, height=0.19))
    if plan.label in _CONTAINED:
        width = max(0.27, 1.5 * plan.actor.width)
        bowl = replace(plan.other, kind="bowl", name=f"{colour} bowl", width=width, height=0.17)
        return replace(plan, other=bowl)
    if plan.label in _POURED:
        glass = replace(plan.other, kind="glass", name="glass", width=0.15, height=0.21)
        return replace(plan, other=glass)
    if plan.label in _COVERED:
        return replace(plan, other=replace(plan.other, kind="cloth", name=f"{colour} cloth"))
    return plan


def clip_states(action: Action) -> list[State]:
    """The state in every frame, before mirroring, at the times that `render_clip` draws."""
    return [state_at(action.plan, t) for t in np.linspace(0.0, 1.0, action.num_frames)]


def render_clip(action: Action) -> np.ndarray:
    """All frames of a clip, uint8 [T, H, W, 3], RGB."""
    size = action.size_px
    scene = action.scene
    frames = np.empty((action.num_frames, size, size, 3), np.uint8)
    generator = np.random.default_rng(action.seed)
    for number, state in enumerate(clip_states(action)):
        camera = scene.offset + scene.jitter[number] + [state.camera_x, -0.06]
        picture = _draw_frame(action, state, camera)
        if action.mirrored:
            picture = picture[:, ::-1]
        frames[number] = scene.film.develop(picture, generator)
    return frames


# ---- what surrounds the action -------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """All that does not depend on the action.

    Attributes:
        background: RGB image of 2.6 x 2.6 frames.
        table: Colour of the table.
        table_edge: Height of its far edge, in frames.
        clutter: Things at the back of the table that have no part in the action, each with the
            place of its base (x, y), farthest first.
        zoom: Frames of the picture per frame of the scene.
        offset: Constant framing error [2], in frames.
        jitter: Camera shake [num_frames, 2], in frames.
    """

    background: Image.Image
    table: Colour
    table_edge: float
    clutter: tuple[tuple[Thing, float, float], ...]
    zoom: float
    offset: np.ndarray
    jitter: np.ndarray
    film: Film


def _draw_scene(
    generator: np.random.Generator, size_px: int, num_frames: int, difficulty: float
) -> Scene:
    """What varies of it is scaled by `difficulty`; the order of the draws decides the bytes."""
    shake = generator.normal(0.0, 0.005 * difficulty, (num_frames, 2))
    drift = np.cumsum(generator.normal(0.0, 0.004 * difficulty, (num_frames, 2)), axis=0)
    noise_level = 2.0 + 6.0 * difficulty * generator.random()
    noise = generator.standard_normal((size_px * 2, size_px * 2, 3), dtype=np.float32)
    edge = float(generator.uniform(-0.1, 0.02))
    return Scene(
        background=draw_background(generator, size_px, difficulty),
        table=_draw_table(generator),
        table_edge=edge,
        clutter=_draw_clutter(generator, edge, difficulty),
        zoom=float(generator.uniform(1.1, 1.2 + 0.06 * difficulty)),
        offset=generator.normal(0.0, 0.015 * difficulty, 2),
        jitter=shake + drift,
        film=Film(
            noise * np.float32(noise_level),
            exposure=float(generator.normal(0.0, 10.0 * difficulty)),
            contrast=float(np.exp(generator.normal(0.0, 0.1 * difficulty))),
        ),
    )


_USUAL_ZOOM = 1.15


def _put_into_room(scene: Scene, room: Room) -> Scene:
    """The scene of a clip with what its group shares; of the clip's own, small deviations stay."""
    return replace(
        scene,
        background=room.wall,
        table=room.table,
        table_edge=room.table_edge,
        clutter=room.clutter,
        zoom=(room.zoom + WITHIN * (scene.zoom - _USUAL_ZOOM)) / room.camera.zoom,
        offset=room.offset + scene.offset,
        film=room.camera.load(scene.film),
    )


def _draw_table(generator: np.random.Generator) -> Colour:
    base = generator.uniform(90, 205)
    warm = generator.uniform(0, 40)
    values = np.clip([base + warm, base + 0.3 * warm, base - 0.7 * warm], 0, 255).astype(int)
    return int(values[0]), int(values[1]), int(values[2])


def _draw_clutter(
    generator: np.random.Generator, edge: float, difficulty: float
) -> tuple[tuple[Thing, float, float], ...]:
    """None at difficulty 0, up to four at 2."""
    found = []
    for _ in range(int(generator.integers(0, 1 + int(np.ceil(2 * difficulty))))):
        thing = draw_thing_of((*_MOVABLE, "bottle", "book"), generator, difficulty)
        x = float(generator.uniform(-0.55, 0.55))
        found.append((thing, x, edge - 0.04 - 0.03 * float(generator.random())))
    return tuple(sorted(found, key=lambda clutter: -clutter[2]))


# ---- a frame -------------------------------------------------------------------------------------
#
# Boxes with lids, containers, covers and glasses are drawn here, since they have a part behind what
# they hold and one in front of it.

_GLASS: Colour = (126, 142, 158)


def _draw_frame(action: Action, state: State, camera: np.ndarray) -> np.ndarray:
    """A frame before it is developed or mirrored, uint8 [H, W, 3]; the camera looks at `camera`."""
    scene = action.scene
    size = action.size_px
    shift = camera * np.array([1.0, -1.0]) * size * scene.zoom
    image = cut_background(scene.background, shift, size)
    draw = ImageDraw.Draw(image)
    pieces = [Piece(rectangle(-3, -3, 3, scene.table_edge), scene.table)]
    for thing, x, y in scene.clutter:
        pieces += draw_thing(thing, x, y)
    plan = action.plan
    pieces += _DRAWN.get(plan.label, _draw_plain)(plan, state, scene.table)
    for tip in state.tips:
        pieces += draw_hand(tip, plan.skin, plan.sleeve, plan.hand_size)
    scale = size * scene.zoom * FINE
    half = 0.5 * size * FINE
    for piece in pieces:
        corners = (piece.points - camera) * np.array([scale, -scale]) + half
        draw.polygon(corners.ravel().tolist(), fill=piece.colour)
    return np.array(image.reduce(FINE))


def _stand(thing: Thing, pose: Pose) -> list[Piece]:
    return draw_thing(thing, pose.x, pose.y, pose.angle)


def _draw_plain(plan: Plan, state: State, table: Colour) -> list[Piece]:
    pieces = draw_shadow(plan.actor, state.actor.x, plan.y, table)
    if state.other is not None:
        pieces += draw_shadow(plan.other, state.other.x, state.other.y, table)
        pieces += _stand(plan.other, state.other)
    return pieces + _stand(plan.actor, state.actor)


def _draw_lidded(plan: Plan, state: State, table: Colour) -> list[Piece]:
    """A box seen from the front; its lid is hinged at the left or right edge."""
    thing = plan.actor
    pose = state.actor
    half, top = 0.5 * thing.width, pose.y + thing.height
    angle = LID_OPEN * state.lid
    hinge = np.array([pose.x + plan.side * half, top + 0.008])
    free = hinge + thing.width * np.array([-plan.side * np.cos(angle), np.sin(angle)])
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


_DRAWN: dict[int, Callable[[Plan, State, Colour], list[Piece]]] = {
    **dict.fromkeys(_LIDDED, _draw_lidded),
    **dict.fromkeys(_CONTAINED, _draw_contained),
    **dict.fromkeys(_COVERED, _draw_covered),
    **dict.fromkeys(_POURED, _draw_poured),
}


# ---- targets of pretraining ----------------------------------------------------------------------
#
# All are in the picture's frame (after mirroring and the camera's turn), so that each can be told
# from the pixels. Stage two never sees them.

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
    actor = state.actor
    other = state.other
    camera = state.camera_x
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


# ---- the data set --------------------------------------------------------------------------------

VIDEO_FOLDER = "20bn-something-something-v2"
LABEL_FOLDER = "labels"
SPLITS = ("train", "validation", "test")
_POURED_INTO = (6, 7, 19)
_POURED_OUT_OF = 9
_SOMETHING = "[something]"


def count_clips(settings: RenderSettings) -> dict[str, int]:
    """Number of clips by split; "test" has one of each class, whose labels stay unknown."""
    counts = (settings.num_train, settings.num_test, len(CLASS_NAMES))
    return dict(zip(SPLITS, counts, strict=True))


def clip_id(split: str, index: int) -> str:
    """The id of clip `index` of `split`: a number as text, unique over all splits."""
    return str(len(SPLITS) * index + SPLITS.index(split) + 1)


def annotate(settings: RenderSettings) -> dict[str, Any]:
    """Content of the annotation files by path, as `Renderer.annotate`."""
    labels = {name: str(number) for number, name in enumerate(CLASS_NAMES)}
    content: dict[str, Any] = {f"{LABEL_FOLDER}/labels.json": labels}
    for split, count in count_clips(settings).items():
        items = [_describe(settings, split, number) for number in range(count)]
        content[f"{LABEL_FOLDER}/{split}.json"] = items
    return content


def _describe(settings: RenderSettings, split: str, number: int) -> dict[str, Any]:
    name = clip_id(split, number)
    if split == "test":
        return {"id": name}
    group = group_of(number, len(CLASS_NAMES), settings.num_groups)
    clip = plan_clip(settings.seed, split, number, difficulty=settings.difficulty, group=group)
    template = TEMPLATES[clip.label]
    placeholders = _placeholders(clip.label, clip.plan)
    text = template
    for placeholder in placeholders:
        text = text.replace(_SOMETHING, placeholder, 1)
    text = text[0].lower() + text[1:]
    item = {"id": name, "label": text, "template": template, "placeholders": placeholders}
    return item if group is None else item | {"group": group_name(split, group)}


def _placeholders(label: int, plan: Plan) -> list[str]:
    """What fills the template's [something]s, in their order."""
    names = [plan.actor.name, plan.other.name]
    if label in _POURED_INTO:
        names = [plan.liquid_name, plan.other.name]
    elif label == _POURED_OUT_OF:
        names = [plan.liquid_name, plan.actor.name, plan.actor.name]
    return names[: TEMPLATES[label].count(_SOMETHING)]


def _name_video(split: str, number: int, group: int | None) -> str:
    return f"{VIDEO_FOLDER}/{clip_id(split, number)}.webm"


RENDERER = Renderer(
    title="stick something",
    clip_title="stick something clips",
    version=1,
    class_names=CLASS_NAMES,
    draw=draw_clip,
    render=render_clip,
    encode=encode_webm,
    count_clips=count_clips,
    name_video=_name_video,
    annotate=annotate,
    stale=(f"{VIDEO_FOLDER}/[0-9]*.webm", f"{LABEL_FOLDER}/*.json"),
    target_names=TARGET_NAMES,
    targets=scene_targets,
    mirror_signs=MIRROR_SIGNS,
    flipped=np.array([flip_label(label) for label in range(len(CLASS_NAMES))]),
)
