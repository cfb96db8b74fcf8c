"""Checks of a machine before clips are read: does the decoder decode, are the videos there.

Each returns what it found, or raises a `UserError` that says what to do.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from dsts_pipeline.base.errors import DataError, UserError
from dsts_pipeline.clips.decode import Decoder, decode_frames, name_decoder
from dsts_pipeline.clips.readers import read_annotations

_FRAMES, _SIZE_PX = 8, 64
_TOLERANCE = 12.0  # grey levels that compression may cost on average


def check_decoder(decoder: Decoder) -> str:
    """Encode a clip of eight grey frames, H.264 and VP9, and decode three of them.

    Raises:
        UserError: The decoder cannot be loaded, or gives other frames.
    """
    wanted = [0, 3, 7]
    shades = np.linspace(20, 230, _FRAMES).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (_FRAMES, _SIZE_PX, _SIZE_PX, 3))
    with tempfile.TemporaryDirectory() as folder:
        try:
            from dsts_pipeline.clips.rendering.encode import encode_mp4, encode_webm

            for name, encode in (("clip.mp4", encode_mp4), ("clip.webm", encode_webm)):
                path = Path(folder, name)
                path.write_bytes(encode(frames))
                decoded = decode_frames(path, wanted, decoder=decoder)
                if np.abs(decoded.astype(float) - frames[wanted]).mean() > _TOLERANCE:
                    raise DataError(f"{decoder} gives other frames of {name} than were encoded")
        except ImportError as error:
            raise UserError(
                f"{decoder} cannot be loaded ({error}); install it by `pip install -c "
                "constraints.txt -e .`"
            ) from None
        except DataError as error:
            raise UserError(f"{error}; set backbone.decoder to another one") from None
    return f"{name_decoder(decoder)} decodes H.264 and VP9"


def check_data(
    kind: str,
    root: str | Path,
    *,
    files: dict[str, str | None] | None = None,
    allow_outside_root: bool = False,
    test_fraction: float = 0.0,
    max_problem_fraction: float = 0.01,
) -> tuple[str, int]:
    """Read the annotations and look whether their videos are there; none is opened.

    Args:
        kind, root, files, allow_outside_root, test_fraction: See `read_annotations`.
        max_problem_fraction: Share of videos that may be missing.

    Returns:
        What was found, and the number of annotated clips.

    Raises:
        DataError: The root, an annotation file or too many videos are missing.
    """
    annotations = read_annotations(
        kind,
        root,
        **(files or {}),
        allow_outside_root=allow_outside_root,
        test_fraction=test_fraction,
    )
    missing = [
        clip.path for clip in annotations.clips if not os.path.isfile(os.path.join(root, clip.path))
    ]
    total = len(annotations.clips)
    if len(missing) > max_problem_fraction * total:
        raise DataError(
            f"{root}: {len(missing):,} of {total:,} annotated videos are missing, first "
            f"{missing[0]} (looked for {os.path.join(root, missing[0])}); put them there, or set "
            "dataset.root or dataset.video_folder"
        )
    classes = len(annotations.class_names)
    return f"{total:,} clips of {classes} classes in {root}, {len(missing):,} missing", total
