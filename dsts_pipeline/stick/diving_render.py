"""Plan and scene in, RGB frames uint8 [T, H, W, 3] out, with the pose of every frame.

Drawing is by Pillow at three times the size, then averaged down; a frame takes about a millisecond.
Everything is a function of (seed, split, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.stick.rendering import FINE, cut_background, develop, draw_background

# ---- The 48 classes of stick diving, written as Diving48 writes its vocabulary. -----------------
#
# A class is [takeoff, somersault, twist, position]: every takeoff performs the same twelve dives.
# Somersaults and twists are counted in halves, as in Diving48 ("15som" is one and a half).

ATTRIBUTE_NAMES = ("takeoff", "somersault", "twist", "position")
TAKEOFFS = ("Forward", "Back", "Reverse", "Inward")
_DIVES = (
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
    (takeoff, *dive) for takeoff in TAKEOFFS for dive in _DIVES
)


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


# ---- A dive as motion: class and random plan in, pose of the figure over time out. --------------
#
# World frame: x from the board to the open water, y up, z towards the camera; lengths in body
# heights, times in parts of the clip (0 first frame, 1 last), angles in radians.

_POSITIONS = {  # hip flexion, knee flexion, arm raise (0 at the side, pi overhead)
    "STR": (0.05, 0.0, 0.1),
    "FREE": (0.05, 0.0, 0.55),
    "PIKE": (1.9, 0.08, 1.5),
    "TUCK": (2.05, 2.25, 0.9),
}
WATER_LEVEL = -2.6


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


def draw_plan(label: int, generator: np.random.Generator) -> DivePlan:
    """Draw the free variables of a dive of class `label`."""

    def between(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    twist_start = between(0.12, 0.2)
    return DivePlan(
        label=label,
        takeoff_time=between(0.07, 0.14),
        flight_time=between(0.74, 0.84),
        leap=between(0.25, 0.6),
        travel=between(0.7, 1.3),
        over_rotation=between(-0.16, 0.16),
        flexion_scale=between(0.88, 1.06),
        knee_scale=between(0.85, 1.08),
        arm_offset=between(-0.25, 0.25),
        twist_sign=1 if generator.random() < 0.5 else -1,
        twist_start=twist_start,
        twist_length=between(0.5, 0.62),
        bend_in=between(0.1, 0.18),
        bend_out=between(0.74, 0.84),
        lean=between(-0.08, 0.12),
    )


def _ramp(value: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, a smooth step between."""
    x = min(max((value - start) / (end - start), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


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
    shape = _ramp(u, plan.bend_in - 0.08, plan.bend_in + 0.1)
    shape *= 1.0 - _ramp(u, plan.bend_out - 0.05, plan.bend_out + 0.1)
    hip, knee, arm = _POSITIONS[dive.position]
    stretched_arm = np.pi * 0.95
    start_x = 0.12 + plan.travel * u
    drop = plan.leap * 4 * u - (plan.leap * 4 - WATER_LEVEL + 0.45) * u * u
    twist = _ramp(u, plan.twist_start, plan.twist_start + plan.twist_length) * dive.twists
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


# ---- Pose of the figure in, its body parts as shaded 2-D shapes out, back to front. -------------
#
# The figure is asymmetric on purpose, so that facing and twist can be seen in a still: face and
# chest panel in front, hair and bare back behind, one arm and leg of another colour than the other.

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


# ---- What surrounds a dive: colours, background, water, camera, exposure and sensor noise. ------
#
# One `Scene` is drawn per clip from its generator; `difficulty` scales how much each nuisance
# varies.


@dataclass(frozen=True)
class Scene:
    """All that does not depend on the pose.

    Attributes:
        colours: RGB 0-255 by body part, and for "board" and "water".
        background: RGB image of 2.6 x 2.6 frames; the camera wanders over it.
        noise: float32 [size * 2, size * 2, 3], cut at a random place for each frame.
        height_scale: Body height as a share of the frame's height.
        camera_yaw: Radians.
        camera_lag: 0 follows the diver exactly, 1 not at all.
        offset: Constant framing error [2], in frames.
        jitter: Camera shake [num_steps, 2], in frames.
        exposure, contrast: Affine change of all values.
        mirrored: The whole picture is flipped left to right.
    """

    colours: dict[str, tuple[int, int, int]]
    background: Image.Image
    noise: np.ndarray
    height_scale: float
    camera_yaw: float
    camera_lag: float
    offset: np.ndarray
    jitter: np.ndarray
    exposure: float
    contrast: float
    mirrored: bool


def draw_scene(
    generator: np.random.Generator, *, size_px: int, num_frames: int, difficulty: float
) -> Scene:
    """Draw the nuisances of one clip.

    Args:
        generator: Source of all randomness.
        size_px: Frame height and width.
        num_frames: Frames that the camera's shake is drawn for.
        difficulty: 0 plain, 1 the default, up to 3.
    """
    shake = generator.normal(0.0, 0.012 * difficulty, (num_frames, 2))
    pan = np.cumsum(generator.normal(0.0, 0.008 * difficulty, (num_frames, 2)), axis=0)
    noise_level = 3.0 + 9.0 * difficulty * generator.random()
    noise = generator.standard_normal((size_px * 2, size_px * 2, 3), dtype=np.float32)
    return Scene(
        colours=_draw_colours(generator, difficulty),
        background=draw_background(generator, size_px, difficulty),
        noise=noise * np.float32(noise_level),
        height_scale=float(generator.uniform(0.52 - 0.06 * difficulty, 0.60)),
        camera_yaw=float(generator.normal(0.0, 0.16 * difficulty)),
        camera_lag=float(generator.uniform(0.0, 0.10 * difficulty)),
        offset=generator.normal(0.0, 0.025 * difficulty, 2),
        jitter=shake + pan,
        exposure=float(generator.normal(0.0, 14.0 * difficulty)),
        contrast=float(np.exp(generator.normal(0.0, 0.14 * difficulty))),
        mirrored=bool(generator.random() < 0.5),
    )


def _draw_colours(
    generator: np.random.Generator, difficulty: float
) -> dict[str, tuple[int, int, int]]:
    base = {
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
    light = generator.normal(0.0, 16.0 * difficulty)
    drawn = {}
    for name, colour in base.items():
        own = generator.normal(0.0, 14.0 * difficulty, 3)
        values = np.clip(np.asarray(colour) + light + own, 0, 255).astype(int)
        drawn[name] = (int(values[0]), int(values[1]), int(values[2]))
    return drawn


# ---- Plan and scene in, RGB frames uint8 [T, H, W, 3] out, with the pose of every frame. --------
#
# Drawing is by Pillow at three times the size, then averaged down; a frame takes about a
# millisecond. Everything is a function of (seed, split, index).


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
) -> Dive:
    """Draw the clip `index` of `split` under `seed`.

    Args:
        seed: The data set's seed.
        split: Name of the split; splits share no random stream.
        index: Number of the clip in its split.
        label: Class 0 to 47; by default `index` modulo 48, so that classes are balanced.
        size_px: Frame height and width.
        num_frames: Frames in the clip.
        difficulty: Strength of the nuisances, 0 to 3.
    """
    generator = np.random.default_rng(derive_seed(seed, "stick_diving", split, index))
    plan = draw_plan(index % len(VOCABULARY) if label is None else label, generator)
    scene = draw_scene(generator, size_px=size_px, num_frames=num_frames, difficulty=difficulty)
    return Dive(plan, scene, size_px, num_frames, int(generator.integers(1 << 31)))


def clip_poses(dive: Dive) -> list[Pose]:
    """The pose in every frame, at the times that `render_clip` draws."""
    return [pose_at(dive.plan, t) for t in np.linspace(0.0, 1.0, dive.num_frames)]


def render_clip(dive: Dive) -> np.ndarray:
    """All frames of a dive, uint8 [T, H, W, 3], RGB."""
    size = dive.size_px
    frames = np.empty((dive.num_frames, size, size, 3), np.uint8)
    generator = np.random.default_rng(dive.seed)
    follow = np.zeros(2)
    for number, pose in enumerate(clip_poses(dive)):
        placed = place(pose, dive.scene.camera_yaw)
        target = 0.5 * (placed["pelvis"] + placed["neck"])[:2]
        follow = target if number == 0 else follow + (1 - dive.scene.camera_lag) * (target - follow)
        frames[number] = _render_frame(dive, number, placed, follow, generator)
    return frames


def _render_frame(
    dive: Dive,
    number: int,
    placed: dict[str, np.ndarray],
    follow: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    scene, size = dive.scene, dive.size_px
    centre = follow + (scene.offset + scene.jitter[number]) / scene.height_scale
    canvas = _Canvas(scene, centre, size)
    for shape in (_BOARD, _TOWER):
        canvas.polygon(shape, scene.colours["board"])
    for part in capsules(placed):
        canvas.capsule(part, scene.colours[part.part])
    picture = canvas.picture()
    _draw_water(picture, scene, centre)
    if scene.mirrored:
        picture = picture[:, ::-1]
    return develop(
        picture,
        contrast=scene.contrast,
        exposure=scene.exposure,
        noise=scene.noise,
        generator=generator,
    )


_BOARD = np.array([[-3.0, 0.0], [0.2, 0.0], [0.2, -0.06], [-3.0, -0.06]])
_TOWER = np.array([[-3.0, -0.06], [-0.75, -0.06], [-0.75, -4.0], [-3.0, -4.0]])


class _Canvas:
    """A frame in the making, three times too large: body heights (y up) -> pixels (y down)."""

    def __init__(self, scene: Scene, centre: np.ndarray, size: int) -> None:
        self._size, self._centre = size, centre
        self._scale = size * scene.height_scale * FINE
        self._image = self._cut_background(scene)
        self._draw = ImageDraw.Draw(self._image)

    def _cut_background(self, scene: Scene) -> Image.Image:
        """The part of the distant wall that the camera sees; it moves at half the speed."""
        shift = self._centre * np.array([0.5, -0.5]) * self._size * scene.height_scale
        return cut_background(scene.background, shift, self._size)

    def polygon(self, points: np.ndarray, colour: tuple[int, int, int]) -> None:
        """Fill the polygon with corners `points` [n, 2]."""
        self._draw.polygon(self._to_pixels(points).ravel().tolist(), fill=colour)

    def capsule(self, part: Capsule, colour: tuple[int, int, int]) -> None:
        """A thick line with round ends."""
        along = part.end - part.start
        length = float(np.hypot(along[0], along[1]))
        if length > 1e-6:
            normal = np.array([-along[1], along[0]]) * (part.radius / length)
            a, b = part.start, part.end
            self.polygon(np.array([a + normal, b + normal, b - normal, a - normal]), colour)
        radius = part.radius * self._scale
        for x, y in self._to_pixels(np.array([part.start, part.end])).tolist():
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def _to_pixels(self, points: np.ndarray) -> np.ndarray:
        half = self._size * FINE / 2
        return (points - self._centre) * np.array([self._scale, -self._scale]) + half

    def picture(self) -> np.ndarray:
        """The frame at its own size, uint8 [H, W, 3]."""
        return np.array(self._image.reduce(FINE))


def _draw_water(picture: np.ndarray, scene: Scene, centre: np.ndarray) -> None:
    """Water hides what is below its surface, all but a faint shadow."""
    size = picture.shape[0]
    row = max(round((centre[1] - WATER_LEVEL) * size * scene.height_scale + size / 2), 0)
    if row < size:
        water = np.array(scene.colours["water"], np.float32)
        picture[row:] = (0.22 * picture[row:] + 0.78 * water).astype(np.uint8)
