"""Stick diving: drawn dives as frames, their targets for pretraining, and the data set's files.

Enters: seed, split and number of a clip. Leaves: RGB frames uint8 [T, H, W, 3], the pose of every
frame, and files exactly as Diving48 V2 lays them out. A frame takes about a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.clips.diving48 import SPLIT_FILES, VIDEO_FOLDER, VOCABULARY_FILE
from dsts_pipeline.stick.diving_groups import Body, DivingGroup, draw_group
from dsts_pipeline.stick.diving_motion import (
    VOCABULARY,
    WATER_LEVEL,
    DivePlan,
    Pose,
    draw_plan,
    pose_at,
)
from dsts_pipeline.stick.groups import WITHIN, group_name, group_of
from dsts_pipeline.stick.rendering import (
    FINE,
    Colour,
    Film,
    Renderer,
    cut_background,
    draw_background,
    encode_mp4,
)

# ---- one clip ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dive:
    """One clip before it is drawn."""

    plan: DivePlan
    scene: Scene
    size_px: int
    num_frames: int
    seed: int


def draw_dive(
    seed: int,
    split: str,
    index: int,
    *,
    label: int | None = None,
    size_px: int = 96,
    num_frames: int = 16,
    difficulty: float = 1.0,
    group: int | None = None,
) -> Dive:
    """The dive `index` of `split`, see `Renderer.draw`."""
    generator = np.random.default_rng(derive_seed(seed, "stick_diving", split, index))
    label = index % len(VOCABULARY) if label is None else label
    if group is None:
        plan = draw_plan(label, generator)
        scene = _draw_scene(generator, size_px, num_frames, difficulty)
    else:
        shared = draw_group(seed, split, group, size_px)
        plan = draw_plan(label, generator, shared.habits)
        scene = _draw_scene(generator, size_px, num_frames, WITHIN * difficulty)
        scene = _put_into_group(scene, shared)
    return Dive(plan, scene, size_px, num_frames, int(generator.integers(1 << 31)))


def clip_poses(dive: Dive) -> list[Pose]:
    """The pose in every frame, at the times that `render_clip` draws."""
    return [pose_at(dive.plan, t) for t in np.linspace(0.0, 1.0, dive.num_frames)]


def render_clip(dive: Dive) -> np.ndarray:
    """All frames of a dive, uint8 [T, H, W, 3], RGB."""
    size = dive.size_px
    scene = dive.scene
    frames = np.empty((dive.num_frames, size, size, 3), np.uint8)
    generator = np.random.default_rng(dive.seed)
    follow = np.zeros(2)
    for number, pose in enumerate(clip_poses(dive)):
        placed = place(pose, scene)
        target = 0.5 * (placed["pelvis"] + placed["neck"])[:2]
        follow = target if number == 0 else follow + (1 - scene.camera_lag) * (target - follow)
        frames[number] = scene.film.develop(_draw_frame(dive, number, placed, follow), generator)
    return frames


# ---- what surrounds the dive ---------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """All that does not depend on the pose.

    Attributes:
        colours: RGB 0-255 by body part, and for "board" and "water".
        background: RGB image of 2.6 x 2.6 frames; the camera wanders over it.
        height_scale: Body height as a share of the frame's height.
        camera_yaw: Radians.
        camera_lag: 0 follows the diver exactly, 1 not at all.
        offset: Constant framing error [2], in frames.
        jitter: Camera shake [num_steps, 2], in frames.
        mirrored: The whole picture is flipped left to right.
        camera_pitch: Radians.
        body: The diver's.
        board_thickness, tower_edge: In body heights, see `_draw_frame`.
    """

    colours: dict[str, Colour]
    background: Image.Image
    height_scale: float
    camera_yaw: float
    camera_lag: float
    offset: np.ndarray
    jitter: np.ndarray
    film: Film
    mirrored: bool
    camera_pitch: float = 0.0
    body: Body = Body()
    board_thickness: float = 0.06
    tower_edge: float = -0.75


def _draw_scene(
    generator: np.random.Generator, size_px: int, num_frames: int, difficulty: float
) -> Scene:
    """What varies of it is scaled by `difficulty`; the order of the draws decides the bytes."""
    shake = generator.normal(0.0, 0.012 * difficulty, (num_frames, 2))
    pan = np.cumsum(generator.normal(0.0, 0.008 * difficulty, (num_frames, 2)), axis=0)
    noise_level = 3.0 + 9.0 * difficulty * generator.random()
    noise = generator.standard_normal((size_px * 2, size_px * 2, 3), dtype=np.float32)
    return Scene(
        colours=_draw_colours(generator, difficulty),
        background=draw_background(generator, size_px, difficulty),
        height_scale=float(generator.uniform(0.52 - 0.06 * difficulty, 0.60)),
        camera_yaw=float(generator.normal(0.0, 0.16 * difficulty)),
        camera_lag=float(generator.uniform(0.0, 0.10 * difficulty)),
        offset=generator.normal(0.0, 0.025 * difficulty, 2),
        jitter=shake + pan,
        film=Film(
            noise * np.float32(noise_level),
            exposure=float(generator.normal(0.0, 14.0 * difficulty)),
            contrast=float(np.exp(generator.normal(0.0, 0.14 * difficulty))),
        ),
        mirrored=bool(generator.random() < 0.5),
    )


_USUAL_HEIGHT = 0.56  # of the diver, in frames


def _put_into_group(scene: Scene, group: DivingGroup) -> Scene:
    """The scene of a clip with what its group shares; of the clip's own, small deviations stay."""
    return replace(
        scene,
        colours={
            name: _stray(colour, np.subtract(scene.colours[name], _COLOURS[name]))
            for name, colour in group.colours.items()
        },
        background=group.wall,
        height_scale=(group.height_scale + WITHIN * (scene.height_scale - _USUAL_HEIGHT))
        / group.camera.zoom,
        camera_yaw=group.camera_yaw + scene.camera_yaw,
        offset=group.offset + scene.offset,
        film=group.camera.load(scene.film),
        mirrored=group.mirrored,
        camera_pitch=group.camera_pitch,
        body=group.body,
        board_thickness=group.board_thickness,
        tower_edge=group.tower_edge,
    )


def _stray(colour: Colour, change: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.add(colour, change), 0, 255).astype(int).tolist()
    return red, green, blue


_COLOURS = {
    "face": (240, 205, 170),
    "hair": (50, 32, 26),
    "chest": (225, 60, 60),
    "back": (212, 165, 125),
    "suit": (40, 50, 150),
    "left_arm": (214, 168, 128),
    "right_arm": (238, 200, 60),
    "left_thigh": (206, 160, 122),
    "left_leg": (206, 160, 122),
    "right_thigh": (86, 190, 110),
    "right_leg": (86, 190, 110),
    "board": (150, 150, 158),
    "water": (60, 125, 175),
}


def _draw_colours(generator: np.random.Generator, difficulty: float) -> dict[str, Colour]:
    light = generator.normal(0.0, 16.0 * difficulty)
    drawn = {}
    for name, colour in _COLOURS.items():
        own = generator.normal(0.0, 14.0 * difficulty, 3)
        values = np.clip(np.asarray(colour) + light + own, 0, 255).astype(int)
        drawn[name] = (int(values[0]), int(values[1]), int(values[2]))
    return drawn


# ---- the figure ----------------------------------------------------------------------------------
#
# It is asymmetric on purpose, so that facing and twist can be seen in a still: face and chest panel
# in front, hair and bare back behind, one arm and leg of another colour than the other.


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


def _turn_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _turn_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _turn_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _direction(angle: float) -> np.ndarray:
    """Unit vector in the body's plane x (front) y (up), `angle` from down towards the front."""
    return np.array([np.sin(angle), -np.cos(angle), 0.0])


def joints(pose: Pose, body: Body) -> dict[str, np.ndarray]:
    """Joint positions [3] in the body's frame: x front, y up along the trunk, z to its right."""
    curl = 0.25 * min(pose.hip, 2.0)
    up = np.array([np.sin(curl), np.cos(curl), 0.0])
    front = np.array([up[1], -up[0], 0.0])
    side = np.array([0.0, 0.0, 1.0])
    pelvis = np.zeros(3)
    neck = pelvis + body.trunk * up
    points = {"pelvis": pelvis, "neck": neck}
    points["head"] = neck + body.neck * up
    points["face"] = points["head"] + 0.038 * front
    thigh = _direction(pose.hip)
    shin = _direction(pose.hip - pose.knee)
    arm = _direction(pose.arm - curl)
    fore = _direction(pose.arm - curl + (0.9 if 0.3 < pose.arm < 1.2 else 0.15))
    for name, sign in (("left", -1.0), ("right", 1.0)):
        hip = pelvis + sign * body.hip * side
        knee = hip + body.thigh * thigh
        ankle = knee + body.shin * shin
        shoulder = neck + sign * body.shoulder * side - 0.02 * up
        elbow = shoulder + body.upper_arm * arm
        points |= {
            f"{name}_hip": hip,
            f"{name}_knee": knee,
            f"{name}_ankle": ankle,
            f"{name}_toe": ankle + body.foot * _direction(pose.hip - pose.knee + 0.5),
            f"{name}_shoulder": shoulder,
            f"{name}_elbow": elbow,
            f"{name}_hand": elbow + body.forearm * fore,
        }
    points["chest_top"] = neck - 0.06 * up + body.chest * front
    points["chest_low"] = pelvis + 0.04 * up + body.chest * front
    return points


def place(pose: Pose, scene: Scene) -> dict[str, np.ndarray]:
    """Joints [3] in the camera's frame (x right, y up, z towards the viewer)."""
    # The body's x axis is its front: facing +1 looks along world +x, -1 along -x.
    facing = 0.0 if pose.facing > 0 else np.pi
    look = _turn_x(scene.camera_pitch) @ _turn_y(scene.camera_yaw)
    turn = look @ _turn_z(pose.somersault) @ _turn_y(facing + pose.twist)
    points = joints(pose, scene.body)
    middle = (
        0.4 * points["pelvis"]
        + 0.25 * points["neck"]
        + 0.1 * points["head"]
        + 0.125 * (points["left_knee"] + points["right_knee"])
    )
    centre = _turn_y(scene.camera_yaw) @ pose.centre
    return {name: turn @ (point - middle) + centre for name, point in points.items()}


_LIMBS = (
    ("{0}_hip", "{0}_knee", 0.045, "{0}_thigh"),
    ("{0}_knee", "{0}_ankle", 0.035, "{0}_leg"),
    ("{0}_ankle", "{0}_toe", 0.025, "{0}_leg"),
    ("{0}_shoulder", "{0}_elbow", 0.032, "{0}_arm"),
    ("{0}_elbow", "{0}_hand", 0.028, "{0}_arm"),
)


def capsules(placed: dict[str, np.ndarray], body: Body) -> list[Capsule]:
    """The visible parts, farthest first."""
    parts: list[Capsule] = []

    def add(start: str, end: str, radius: float, part: str, nearer: float = 0.0) -> None:
        a, b = placed[start], placed[end]
        depth = 0.5 * float(a[2] + b[2]) + nearer
        parts.append(Capsule(a[:2], b[:2], radius * body.thickness, part, depth))

    for side in ("left", "right"):
        for start, end, radius, part in _LIMBS:
            add(start.format(side), end.format(side), radius, part.format(side))
        add(f"{side}_shoulder", f"{side}_hip", 0.055, "back")
    add("pelvis", "neck", 0.075, "back")
    add("left_hip", "right_hip", 0.055, "suit")
    add("chest_top", "chest_low", 0.05, "chest", nearer=0.01)
    head = body.head / body.thickness
    add("head", "head", 0.075 * head, "hair")
    add("face", "face", 0.055 * head, "face", nearer=0.02)
    return sorted(parts, key=lambda part: part.depth)


# ---- a frame -------------------------------------------------------------------------------------


def _board_and_tower(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Corners of both, in body heights."""
    low = -scene.board_thickness
    edge = scene.tower_edge
    board = np.array([[-3.0, 0.0], [0.2, 0.0], [0.2, low], [-3.0, low]])
    tower = np.array([[-3.0, low], [edge, low], [edge, -4.0], [-3.0, -4.0]])
    return board, tower


def _draw_frame(
    dive: Dive, number: int, placed: dict[str, np.ndarray], follow: np.ndarray
) -> np.ndarray:
    """Frame `number` before it is developed, uint8 [H, W, 3]; the camera follows `follow` [2]."""
    scene = dive.scene
    size = dive.size_px
    centre = follow + (scene.offset + scene.jitter[number]) / scene.height_scale
    # The distant wall moves at half the speed.
    shift = centre * np.array([0.5, -0.5]) * size * scene.height_scale
    image = cut_background(scene.background, shift, size)
    draw = ImageDraw.Draw(image)
    scale = size * scene.height_scale * FINE
    half = size * FINE / 2

    def to_pixels(points: np.ndarray) -> np.ndarray:
        """Body heights (y up) to drawn pixels (y down)."""
        return (points - centre) * np.array([scale, -scale]) + half

    def fill(points: np.ndarray, colour: Colour) -> None:
        draw.polygon(to_pixels(points).ravel().tolist(), fill=colour)

    for shape in _board_and_tower(scene):
        fill(shape, scene.colours["board"])
    for part in capsules(placed, scene.body):
        colour = scene.colours[part.part]
        radius = part.radius * scale
        along = part.end - part.start
        length = float(np.hypot(along[0], along[1]))
        if length > 1e-6:
            normal = np.array([-along[1], along[0]]) * (part.radius / length)
            a, b = part.start, part.end
            fill(np.array([a + normal, b + normal, b - normal, a - normal]), colour)
        for x, y in to_pixels(np.array([part.start, part.end])).tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    picture = np.array(image.reduce(FINE))
    # Water hides what is below its surface, all but a faint shadow.
    row = max(round((centre[1] - WATER_LEVEL) * size * scene.height_scale + size / 2), 0)
    if row < size:
        water = np.array(scene.colours["water"], np.float32)
        picture[row:] = (0.22 * picture[row:] + 0.78 * water).astype(np.uint8)
    return picture[:, ::-1] if scene.mirrored else picture


# ---- targets of pretraining ----------------------------------------------------------------------
#
# All are in the picture's frame (after mirroring), so that each can be told from the pixels. Stage
# two never sees them.

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
    rows = np.stack([_still_targets(pose, dive.scene) for pose in poses])
    spin = np.diff([pose.somersault for pose in poses], prepend=poses[0].somersault) / np.pi
    twist = np.abs(np.diff([pose.twist for pose in poses], prepend=poses[0].twist)) / np.pi
    targets = np.concatenate([rows, spin[:, None], twist[:, None]], axis=1).astype(np.float32)
    return targets * MIRROR_SIGNS if dive.scene.mirrored else targets


def _still_targets(pose: Pose, scene: Scene) -> np.ndarray:
    placed = place(pose, scene)
    axis = _unit(placed["neck"] - placed["pelvis"])
    right = _unit(placed["right_shoulder"] - placed["left_shoulder"])
    return np.concatenate([axis, np.cross(axis, right), right, [pose.hip, pose.knee]])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


# ---- the data set --------------------------------------------------------------------------------


def count_clips(settings: RenderSettings) -> dict[str, int]:
    """Number of clips by split."""
    return {"train": settings.num_train, "test": settings.num_test}


def clip_name(split: str, number: int, group: int | None = None) -> str:
    """The vid_name of clip `number` of `split`, such as `stick_test_00042`.

    With a group `stick_test_g03_00042`: what stands before the number is the group, as in Diving48.
    """
    return f"stick_{split if group is None else group_name(split, group)}_{number:05d}"


def annotate(settings: RenderSettings) -> dict[str, Any]:
    """Content of the annotation files by path, as `Renderer.annotate`."""
    content: dict[str, Any] = {VOCABULARY_FILE: [list(entry) for entry in VOCABULARY]}
    for split, count in count_clips(settings).items():
        content[SPLIT_FILES[split]] = [
            {
                "vid_name": clip_name(
                    split, number, group_of(number, len(VOCABULARY), settings.num_groups)
                ),
                "label": number % len(VOCABULARY),
                "start_frame": 0,
                "end_frame": settings.num_frames,
            }
            for number in range(count)
        ]
    return content


def _name_video(split: str, number: int, group: int | None) -> str:
    return f"{VIDEO_FOLDER}/{clip_name(split, number, group)}.mp4"


RENDERER = Renderer(
    title="stick diving",
    clip_title="stick dives",
    version=1,
    class_names=tuple(" ".join(entry) for entry in VOCABULARY),
    draw=draw_dive,
    render=render_clip,
    encode=encode_mp4,
    count_clips=count_clips,
    name_video=_name_video,
    annotate=annotate,
    stale=(f"{VIDEO_FOLDER}/stick_*.mp4", *SPLIT_FILES.values(), VOCABULARY_FILE),
    target_names=TARGET_NAMES,
    targets=pose_targets,
    mirror_signs=MIRROR_SIGNS,
    flipped=np.arange(len(VOCABULARY)),  # a mirrored dive is the same dive
)
