"""Annotated clips -> checked clip index: every video is looked at before anything costly starts.

Each file is probed (frames, size) and hashed, in parallel. What is missing or can't be read becomes
a listed problem with its reason; too many of them stop the stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.annotation import AnnotatedClip
from dsts_pipeline.clips.decode import VideoError, probe
from dsts_pipeline.clips.index import Clip, ClipIndex, Problem
from dsts_pipeline.clips.readers import read_annotations

_NUM_SHOWN = 5


def prepare_clips(
    *,
    name: str,
    kind: str,
    root: str | Path,
    num_workers: int = 2,
    max_problem_fraction: float = 0.01,
) -> ClipIndex:
    """Read the annotations under `root`, probe every video, and return the clip index.

    Args:
        name: Name of the data set.
        kind: Format of its annotations, see `read_annotations`.
        num_workers: Videos probed at a time.
        max_problem_fraction: Largest share of annotated clips that may be unusable.

    Raises:
        DataError: An annotation is wrong, a split has no usable clip, or too many clips are
            unusable; the message names the first ones.
    """
    root = Path(root)
    annotations = read_annotations(kind, root)
    clips: list[Clip] = []
    problems: list[Problem] = []
    with track("Checking videos", len(annotations.clips)) as progress:
        for checked in _check_all(root, annotations.clips, num_workers):
            (clips if isinstance(checked, Clip) else problems).append(checked)  # type: ignore[arg-type]
            progress.advance(note=f"{len(problems)} unusable" if problems else None)
    index = ClipIndex(
        dataset=name,
        root=str(root),
        class_names=annotations.class_names,
        attribute_names=annotations.attribute_names,
        attributes=annotations.attributes,
        clips=tuple(clips),
        problems=tuple(problems),
    )
    _refuse_unusable(index, {clip.split for clip in annotations.clips}, max_problem_fraction)
    return index


def _check_all(
    root: Path, clips: tuple[AnnotatedClip, ...], num_workers: int
) -> Iterator[Clip | Problem]:
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        yield from pool.map(lambda clip: _check(root, clip), clips)


def _check(root: Path, annotated: AnnotatedClip) -> Clip | Problem:
    path = root / annotated.path
    try:
        if not path.is_file():
            raise DataError("the video file is missing")
        if not path.resolve().is_relative_to(root.resolve()):
            raise DataError("the video file is a link that leads out of the data root")
        num_frames = probe(path).num_frames
        start = annotated.start_frame or 0
        end = num_frames if annotated.end_frame is None else min(annotated.end_frame, num_frames)
        if end <= start:
            raise DataError(f"no frame left: annotated from {start}, the file has {num_frames}")
    except (DataError, OSError) as error:
        reason = error.reason if isinstance(error, VideoError) else str(error)
        return Problem(annotated.id, annotated.split, annotated.path, reason)
    return Clip(
        id=annotated.id,
        path=annotated.path,
        label=annotated.label,
        split=annotated.split,
        num_frames=num_frames,
        start_frame=start,
        end_frame=end,
        size_bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )


def _refuse_unusable(index: ClipIndex, splits: set[str], max_problem_fraction: float) -> None:
    total = len(index.clips) + len(index.problems)
    first = "; ".join(f"{p.clip_id} ({p.reason})" for p in index.problems[:_NUM_SHOWN])
    if len(index.problems) > max_problem_fraction * total:
        raise DataError(
            f"{index.root}: {len(index.problems)} of {total} annotated clips are unusable, more "
            f"than dataset.max_problem_fraction = {max_problem_fraction:g} allows. First: {first}. "
            "Repair or remove them, or raise the setting"
        )
    for split in sorted(splits - index.count_splits().keys()):
        raise DataError(f"{index.root}: no clip of the {split} split is usable. First: {first}")
