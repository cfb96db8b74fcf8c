"""A folder of rendered clips: what is there is kept, what is missing is rendered.

Enters: a recipe (all that decides the bytes), the wanted video files and how each is made. Leaves:
the files and the recipe beside them. An interrupted rendering goes on where it stopped; another
recipe's files are stale and replaced; a folder that no recipe made is left alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, write_atomic, write_json
from dsts_pipeline.base.progress import track

_BATCH_CLIPS = 16
Key = tuple[str, int]  # split and number of a clip


def render_folder(
    root: str | Path,
    *,
    title: str,
    recipe_file: str,
    recipe: Mapping[str, Any],
    videos: Mapping[str, Key],
    render: Callable[[Key], bytes],
    stale: Sequence[str],
    num_workers: int = 1,
) -> int:
    """Render what is missing of `videos` below `root`.

    Args:
        title: What is rendered, for messages, such as "stick dives".
        recipe_file: Name of the file that keeps `recipe`; it marks the folder as ours.
        recipe: JSON-able; another one makes all present files stale.
        videos: Path relative to `root` -> what to give to `render`.
        render: A clip's split and number -> bytes of its file; importable by name, since worker
            processes call it.
        stale: Patterns of all files that a rendering of any recipe makes.
        num_workers: Processes.

    Returns:
        Number of clips rendered anew.

    Raises:
        DataError: `root` holds something that no recipe made.
    """
    root = Path(root)
    _check_root(root, title, recipe_file, recipe, stale)
    write_json(root / recipe_file, recipe)
    missing = [
        (str(root / name), key) for name, key in videos.items() if not (root / name).exists()
    ]
    if missing:
        with track(f"Rendering {title}", len(missing)) as progress:
            for count in _render_all(render, missing, num_workers):
                progress.advance(count)
    return len(missing)


def _check_root(
    root: Path, title: str, recipe_file: str, recipe: Mapping[str, Any], stale: Sequence[str]
) -> None:
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / recipe_file).exists():
        raise DataError(
            f"{root} is not empty and holds no {recipe_file}, so {title} will not be written "
            "there; set dataset.root to an empty folder"
        )
    if read_json(root / recipe_file) != dict(recipe):
        # The recipe is overwritten after this, so that a kill in between removes the rest later.
        for pattern in stale:
            for path in root.glob(pattern):
                path.unlink()


def _render_all(
    render: Callable[[Key], bytes], missing: list[tuple[str, Key]], num_workers: int
) -> Iterator[int]:
    batches = [missing[i : i + _BATCH_CLIPS] for i in range(0, len(missing), _BATCH_CLIPS)]
    if num_workers <= 1:
        for batch in batches:
            yield _render_batch(render, batch)
        return
    yield from map_in_processes(
        _render_batch, [render] * len(batches), batches, num_workers=num_workers
    )


def _render_batch(render: Callable[[Key], bytes], batch: list[tuple[str, Key]]) -> int:
    for path, key in batch:
        write_atomic(path, render(key))
    return len(batch)


# ---- Parts of a drawn frame that do not depend on what happens in it: background and development.
#
# Drawing is by Pillow at `FINE` times the size, then averaged down.

FINE = 3  # drawn pixels per frame pixel, in each direction
BACKGROUND_FRAMES = 2.6  # side of the background, in frames


def draw_background(generator: np.random.Generator, size_px: int, difficulty: float) -> Image.Image:
    """Smooth patches of two scales and a few straight edges, RGB, of 2.6 x 2.6 frames."""
    size = int(size_px * BACKGROUND_FRAMES)
    values = np.empty((size, size, 3), np.float32)
    values[:] = generator.uniform(80, 180) + generator.normal(0.0, 14.0, 3)
    for cells, amplitude in ((5, 18.0), (16, 10.0)):
        grey = generator.normal(0.0, amplitude * difficulty, (cells, cells, 1))
        patches = grey + generator.normal(0.0, 0.4 * amplitude * difficulty, (cells, cells, 3))
        values += _enlarge(patches + 128.0, size) - 128.0
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(generator.integers(3, 4 + int(8 * difficulty))):
        ends = generator.integers(0, size, 4).tolist()
        shade = generator.uniform(50, 210) + generator.normal(0.0, 16.0, 3)
        red, green, blue = np.clip(shade, 0, 255).astype(int).tolist()
        thickness = int(generator.integers(1, max(2, size_px // 20)))
        draw.line(ends, fill=(red, green, blue), width=thickness)
    return picture


def _enlarge(patches: np.ndarray, size: int) -> np.ndarray:
    """Smoothly enlarge [cells, cells, 3] values of 0 to 255 to [size, size, 3]."""
    small = Image.fromarray(np.clip(patches, 0, 255).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def cut_background(background: Image.Image, shift: np.ndarray, size_px: int) -> Image.Image:
    """The part of the background that a camera sees, `FINE` times too large.

    Args:
        background: See `draw_background`.
        shift: Pixels [2] (x right, y down) from its usual place; it stops at the edges.
        size_px: Frame height and width.
    """
    span = background.width - size_px
    x, y = np.clip(np.array([0.3, 0.3]) * span + shift, 0, span - 1)
    picture = background.transform(
        (size_px, size_px),
        Image.Transform.AFFINE,
        (1, 0, float(x), 0, 1, float(y)),
        Image.Resampling.BILINEAR,
    )
    fine = size_px * FINE
    return picture.resize((fine, fine), Image.Resampling.NEAREST)


def develop(
    picture: np.ndarray,
    *,
    contrast: float,
    exposure: float,
    noise: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Exposure, contrast and sensor noise: uint8 [H, W, 3] in, another one out.

    Args:
        noise: float32 [2 H, 2 W, 3], cut at a random place.
    """
    size = picture.shape[0]
    row, column = generator.integers(0, size, 2)
    values = picture.astype(np.float32)
    values -= 128.0
    values *= contrast
    values += 128.0 + exposure
    values += noise[row : row + size, column : column + size]
    return np.clip(values, 0, 255).astype(np.uint8)


# ---- Frames -> bytes of a video file; equal frames give equal bytes. ----------------------------
#
# Enters: uint8 [T, H, W, 3], RGB. Leaves: H.264 in mp4, as Diving48 has it, or VP9 in webm, as
# Something-Something v2 has it.

FRAMES_PER_SECOND = 12


def encode_mp4(frames: np.ndarray, *, quality: int = 20) -> bytes:
    """H.264 in mp4, single-threaded so that equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        quality: x264's constant rate factor; lower is better.
    """
    options = {
        "crf": str(quality),
        "preset": "veryfast",
        "threads": "1",
        # Without it, x264's macroblock tree rounds differently from call to call.
        "x264-params": "cpu-independent=1",
    }
    return _encode(frames, "mp4", "libx264", options)


def encode_webm(frames: np.ndarray, *, quality: int = 32) -> bytes:
    """VP9 in webm, by libvpx's fastest setting; equal frames give equal bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        quality: VP9's constrained quality, 0 to 63; lower is better.
    """
    options = {"crf": str(quality), "deadline": "realtime", "cpu-used": "8", "threads": "1"}
    # Without it, the container gets random identifiers.
    return _encode(frames, "webm", "libvpx-vp9", options, {"fflags": "+bitexact"})


def _encode(
    frames: np.ndarray,
    container_format: str,
    codec: str,
    options: Mapping[str, str],
    container_options: Mapping[str, str] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    arguments: dict[str, Any] = {"options": dict(container_options)} if container_options else {}
    with av.open(buffer, "w", format=container_format, **arguments) as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        if codec == "libvpx-vp9":
            stream.codec_context.bit_rate = 0  # quality decides, not a rate
        stream.options = dict(options)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


# ---- Contact sheets: clips as rows of frames under their titles, to check by eye what is visible.

_TITLE_PX = 14


def stack_strips(rows: Iterable[tuple[str, np.ndarray]]) -> Image.Image:
    """One row per clip, all its frames side by side, its title above.

    Args:
        rows: (title, frames uint8 [T, H, W, 3]); equal shapes.
    """
    titled = [(title, np.concatenate(list(frames), axis=1)) for title, frames in rows]
    height, width = titled[0][1].shape[:2]
    sheet = Image.new("RGB", (width, len(titled) * (height + _TITLE_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, strip) in enumerate(titled):
        top = row * (height + _TITLE_PX)
        draw.text((3, top + 1), title, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + _TITLE_PX))
    return sheet
