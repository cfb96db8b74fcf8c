"""Annotated clips -> checked clip index: every video is looked at before anything costly starts.

Enters: a data root. Leaves: the clip index, and findings for a person to read. What is missing or
can't be read becomes a listed problem with its reason; too many of them stop the stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import TRAIN, VAL, AnnotatedClip, Annotations
from dsts_pipeline.clips.decode import Decoder, find_refusal
from dsts_pipeline.clips.findings import Findings, collect_findings
from dsts_pipeline.clips.frame_ranges import EndFrame, decide_end_frame, frames_of
from dsts_pipeline.clips.heldout import hold_out_groups
from dsts_pipeline.clips.index import Clip, ClipIndex, Problem
from dsts_pipeline.clips.probe_cache import ProbeCache, SeenVideo
from dsts_pipeline.clips.readers import read_annotations
from dsts_pipeline.clips.videos import MISSING, OUTSIDE, look_at_videos

_NUM_SHOWN = 5
_KINDS = {MISSING: "missing", OUTSIDE: "outside"}


@dataclass(frozen=True)
class HoldOut:
    """Which part of train becomes "val".

    Attributes:
        fraction: Share of each class, in [0, 1).
        by: "clip" (videos of the same content stay together) or "group".
        seed: Decides which.
    """

    fraction: float = 0.0
    by: str = "clip"
    seed: int = 0


def prepare_clips(
    *,
    name: str,
    kind: str,
    root: str | Path,
    files: Mapping[str, str | None] | None = None,
    end_frame: EndFrame = "auto",
    min_frames: int = 1,
    hold_out: HoldOut = HoldOut(),
    official_counts: bool = False,
    cache_path: str | Path | None = None,
    num_workers: int = 2,
    max_problem_fraction: float = 0.01,
    decoders: Sequence[Decoder] = ("auto",),
) -> tuple[ClipIndex, Findings]:
    """Read the annotations under `root`, look at every video, and make the clip index.

    Args:
        name: Name of the data set.
        kind, files: Format of its annotations and names of its files, see `read_annotations`.
        end_frame: Whether an annotated last frame belongs to its clip, see `decide_end_frame`.
        min_frames: A clip of fewer frames is a problem.
        hold_out: Which part of train becomes "val"; none by default.
        official_counts: Compare the splits with the published counts.
        cache_path: Where to remember what was found, so that a rerun goes on; None: nowhere.
        num_workers: Videos looked at side by side.
        max_problem_fraction: Largest share of annotated clips that may be unusable.
        decoders: The one that extraction will use, and the one that it falls back to. A clip that
            none of them reads exactly is a problem.

    Raises:
        DataError: An annotation is wrong, a split has no usable clip, too many clips are unusable
            (the message names the first ones), or nothing can be held out.
    """
    root = Path(root)
    annotations = read_annotations(kind, root, **(files or {}))
    with ProbeCache(cache_path) as cache:
        paths = [clip.path for clip in annotations.clips]
        videos = look_at_videos(root, paths, cache=cache, num_workers=num_workers)
    rule = decide_end_frame(
        ((c, info.num_frames) for c in annotations.clips if (info := videos[c.path].info)),
        end_frame,
    )
    index = _build_index(name, root, annotations, videos, rule.rule, min_frames, hold_out, decoders)
    _refuse_unusable(index, {clip.split for clip in annotations.clips}, max_problem_fraction)
    findings = collect_findings(
        annotations,
        index,
        root=root,
        end_frame=rule,
        cut_ranges=_find_cut(annotations, videos),
        official_counts=official_counts,
    )
    return index, findings


def _build_index(
    name: str,
    root: Path,
    annotations: Annotations,
    videos: Mapping[str, SeenVideo],
    rule: str,
    min_frames: int,
    hold_out: HoldOut,
    decoders: Sequence[Decoder],
) -> ClipIndex:
    checked = [
        _check(clip, videos[clip.path], rule, min_frames, decoders) for clip in annotations.clips
    ]
    clips = [clip for clip in checked if isinstance(clip, Clip)]
    return ClipIndex(
        dataset=name,
        root=str(root),
        class_names=annotations.class_names,
        attribute_names=annotations.attribute_names,
        attributes=annotations.attributes,
        clips=tuple(_hold_out(clips, hold_out)),
        problems=tuple(problem for problem in checked if isinstance(problem, Problem)),
    )


def _find_cut(annotations: Annotations, videos: Mapping[str, SeenVideo]) -> list[str]:
    """Clips whose annotated end is beyond their video's end."""
    return [
        f"{clip.split}/{clip.id}"
        for clip in annotations.clips
        if (info := videos[clip.path].info) and (clip.end_frame or 0) > info.num_frames
    ]


def _check(
    annotated: AnnotatedClip,
    seen: SeenVideo,
    rule: str,
    min_frames: int,
    decoders: Sequence[Decoder],
) -> Clip | Problem:
    def problem(reason: str, kind: str) -> Problem:
        return Problem(annotated.id, annotated.split, annotated.path, reason, kind)

    info = seen.info
    if info is None:
        return problem(seen.reason, _KINDS.get(seen.reason, "unreadable"))
    refusals = [find_refusal(info, decoder) for decoder in decoders]
    if all(refusals):
        return problem(f"{refusals[0]} ({info.codec} in {info.container})", "unreadable")
    try:
        start, end = frames_of(annotated, info, rule=rule)
    except ValueError as error:
        return problem(str(error), "unreadable")
    if end <= start:
        return problem(
            f"no frame left: annotated from {start}, the file has {info.num_frames}", "too short"
        )
    if end - start < min_frames:
        return problem(
            f"{end - start} frames, fewer than dataset.min_frames = {min_frames}", "too short"
        )
    return Clip(
        id=annotated.id,
        path=annotated.path,
        label=annotated.label,
        split=annotated.split,
        num_frames=info.num_frames,
        start_frame=start,
        end_frame=end,
        size_bytes=seen.size_bytes,
        sha256=seen.sha256,
        fps=info.fps,
        width_px=info.width,
        height_px=info.height,
        codec=info.codec,
        group=annotated.group,
        container=info.container,
        pixel_format=info.pixel_format,
        gop=info.gop,
        num_hidden=info.num_hidden,
        rotation_degrees=info.rotation_degrees,
        num_video_streams=info.num_video_streams,
        starts_at_zero=info.starts_at_zero,
        is_constant_rate=info.is_constant_rate,
    )


def _hold_out(clips: Sequence[Clip], wanted: HoldOut) -> list[Clip]:
    """The clips in their order, some of train in the split "val"."""
    if wanted.fraction == 0.0:
        return list(clips)
    if any(clip.split == VAL for clip in clips):
        raise DataError(
            "the annotations have a val split of their own: set dataset.heldout_fraction to 0"
        )
    train = [clip for clip in clips if clip.split == TRAIN]
    if wanted.by == "group" and not any(clip.group for clip in train):
        raise DataError(
            "dataset.heldout_by is group, but the annotations tell no groups: set it to clip"
        )
    groups = [(wanted.by == "group" and clip.group) or clip.sha256 for clip in train]
    labels = [clip.label for clip in train]
    held = hold_out_groups(labels, groups, fraction=wanted.fraction, seed=wanted.seed)
    ids = {clip.id for clip, is_held in zip(train, held, strict=True) if is_held}
    return [
        replace(clip, split=VAL) if clip.split == TRAIN and clip.id in ids else clip
        for clip in clips
    ]


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
