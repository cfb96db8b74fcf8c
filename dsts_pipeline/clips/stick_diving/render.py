"""Plan and scene in, RGB frames uint8 [T, H, W, 3] out, with the pose of every frame.

Drawing is by Pillow at three times the size, then averaged down; a frame takes about a millisecond.
Everything is a function of (seed, split, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.clips.rendering.picture import FINE, cut_background, develop
from dsts_pipeline.clips.stick_diving.classes import VOCABULARY
from dsts_pipeline.clips.stick_diving.figure import Capsule, capsules, place
from dsts_pipeline.clips.stick_diving.motion import (
    WATER_LEVEL,
    DivePlan,
    Pose,
    draw_plan,
    pose_at,
)
from dsts_pipeline.clips.stick_diving.scene import Scene, draw_scene


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
