"""Annotated clips -> checked clip index: every video is looked at before anything costly starts.

Enters: the data set's section of the settings. Leaves: the clip index, and findings for a person to
read. What is missing or can't be read becomes a listed problem with its reason; too many of them
stop the stage.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.groups import hold_out_groups
from dsts_pipeline.base.settings import DatasetSettings
from dsts_pipeline.clips.annotation import TEST, TRAIN, VAL, AnnotatedClip, name_clip
from dsts_pipeline.clips.decode import Decoder, find_refusal
from dsts_pipeline.clips.findings import Findings, collect_findings
from dsts_pipeline.clips.index import Clip, ClipIndex, Problem, decide_end_frame, frames_of
from dsts_pipeline.clips.probe import INDEXED, VideoInfo
from dsts_pipeline.clips.readers import read_annotations
from dsts_pipeline.clips.videos import MISSING, OUTSIDE, SeenVideo, look_at_videos

_NUM_SHOWN = 5
_KINDS = {MISSING: "missing", OUTSIDE: "outside"}


class RefusedClipsError(DataError):
    """The clips won't do; `findings` tells of all of them."""

    def __init__(self, message: str, findings: Findings) -> None:
        super().__init__(message)
        self.findings = findings


def prepare_clips(
    dataset: DatasetSettings,
    *,
    cache_path: str | Path | None = None,
    decoders: Sequence[Decoder] = ("auto",),
) -> tuple[ClipIndex, Findings]:
    """Read the annotations under `dataset.root`, look at every video, and make the clip index.

    Args:
        dataset: Where the clips are and how they are read and split; `dataset.render` and the
            rules of flipping are not looked at.
        cache_path: Where to remember what was found, so that a rerun goes on; None: nowhere.
        decoders: The one that extraction will use, and the one that it falls back to. A clip that
            none of them reads exactly is a problem.

    Raises:
        DataError: An annotation is wrong.
        RefusedClipsError: A split has no usable clip, too many clips are unusable (the message
            names the first ones), or nothing can be held out.
    """
    root = Path(dataset.root)
    annotations = read_annotations(
        dataset.format,
        root,
        video_folder=dataset.video_folder,
        train_file=dataset.train_file,
        test_file=dataset.test_file,
        class_file=dataset.class_file,
        allow_outside_root=dataset.allow_outside_root,
        test_fraction=dataset.test_fraction,
    )
    videos = look_at_videos(
        root,
        [clip.path for clip in annotations.clips],
        cache_path=cache_path,
        num_workers=dataset.num_probe_workers,
        allow_outside=dataset.allow_outside_root,
    )
    end_frame = decide_end_frame(
        ((c, info.num_frames) for c in annotations.clips if (info := videos[c.path].info)),
        dataset.end_frame,
    )
    checked = [
        _check_clip(clip, videos[clip.path], end_frame.rule, dataset.min_frames, decoders)
        for clip in annotations.clips
    ]
    problems = _tell_where([found for found in checked if isinstance(found, Problem)], root)
    problems += [Problem(c.id, c.split, c.path, c.reason, "name") for c in annotations.unusable]
    index = ClipIndex(
        dataset=dataset.name,
        root=str(root),
        class_names=annotations.class_names,
        attribute_names=annotations.attribute_names,
        attributes=annotations.attributes,
        clips=tuple(found for found in checked if isinstance(found, Clip)),
        problems=tuple(problems),
    )
    annotated_splits = {clip.split for clip in annotations.clips}
    wrong = _find_unusable(index, annotated_splits, dataset.max_problem_fraction)
    test_split: dict[str, Any] = {}
    if not wrong:
        try:
            if dataset.test_fraction:
                index, test_split, note = _draw_test(index, dataset)
                annotations = replace(annotations, notes=(*annotations.notes, note))
            index = replace(index, clips=_hold_out_val(index.clips, dataset))
        except DataError as error:
            wrong = str(error)
    findings = collect_findings(
        annotations,
        index,
        root=root,
        end_frame=end_frame,
        cut_ranges=[
            name_clip(clip.split, clip.id)
            for clip in annotations.clips
            if (info := videos[clip.path].info) and _ends_beyond(clip, info)
        ],
        official_counts=dataset.official_counts,
        test_split=test_split,
    )
    if wrong:
        raise RefusedClipsError(wrong, findings)
    return index, findings


# ---- clips and problems --------------------------------------------------------------------------


def _check_clip(
    annotated: AnnotatedClip,
    seen: SeenVideo,
    rule: str,
    min_frames: int,
    decoders: Sequence[Decoder],
) -> Clip | Problem:
    """The clip as the index keeps it, or why it can't be used; `rule`: see `frames_of`."""

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
        group=annotated.group,
        is_constant_rate=info.is_constant_rate,
        **{name: getattr(info, name) for name in INDEXED},
    )


def _tell_where(problems: Sequence[Problem], root: Path) -> list[Problem]:
    """The problems; a missing file's says which path was looked for, and what lies there instead.

    Names that look the same may differ in case, or in how Unicode composes their letters.
    """
    folders: dict[Path, dict[str, str]] = {}

    def find_similar(path: Path) -> str:
        if path.parent not in folders:
            names = os.listdir(path.parent) if path.parent.is_dir() else []
            folders[path.parent] = {_fold(name): name for name in names}
        return folders[path.parent].get(_fold(path.name), "")

    told = []
    for problem in problems:
        if problem.kind == "missing":
            path = root / problem.path
            reason = f"{problem.reason}: looked for {path}"
            if os.path.islink(path):
                reason += ", a link to nothing"
            elif os.path.exists(path):
                reason += ", which is no regular file"
            elif similar := find_similar(path):
                reason += f"; {ascii(similar)} is there: write the name as the file has it"
            problem = replace(problem, reason=reason)
        told.append(problem)
    return told


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _ends_beyond(clip: AnnotatedClip, info: VideoInfo) -> bool:
    """Whether the annotated end is beyond the video's, by more than a frame where it is a time."""
    if (clip.end_frame or 0) > info.num_frames:
        return True
    if clip.end_seconds is None:
        return False
    if info.times_seconds:
        return clip.end_seconds > 2 * info.times_seconds[-1] - info.times_seconds[-2:][0] + 1 / 24
    return info.fps > 0 and clip.end_seconds > (info.num_frames + 1) / info.fps


def _find_unusable(index: ClipIndex, splits: set[str], max_problem_fraction: float) -> str:
    """What is wrong where too many clips, or all of a split, are unusable; else nothing."""
    num_bad = len(index.problems)
    total = len(index.clips) + len(index.problems)
    first = "; ".join(f"{p.clip_id} ({p.reason})" for p in index.problems[:_NUM_SHOWN])
    allowed = math.floor(max_problem_fraction * total + 1e-9)  # 0.29 * 100 is 28.999...
    if num_bad > allowed:
        enough = min(1.0, math.ceil(1000 * num_bad / total) / 1000)
        return (
            f"{index.root}: {num_bad} of {total} annotated clips are unusable "
            f"({100 * num_bad / total:.1f} %), and dataset.max_problem_fraction = "
            f"{max_problem_fraction:g} allows {allowed}. First: "
            f"{first}. Repair or remove them, or go on without them by "
            f"dataset.max_problem_fraction={enough:g}"
        )
    for split in sorted(splits - index.count_splits().keys()):
        return f"{index.root}: no clip of the {split} split is usable. First: {first}"
    return ""


# ---- splits that are drawn: "test" where the annotations have none, "val" to choose settings by --


def _draw_test(index: ClipIndex, dataset: DatasetSettings) -> tuple[ClipIndex, dict[str, Any], str]:
    """Some clips of train become the split "test"; how they were drawn, and in a sentence."""
    fraction = dataset.test_fraction
    seed = dataset.heldout_seed
    held = hold_out_groups(
        [clip.label for clip in index.clips],
        [clip.group or clip.sha256 for clip in index.clips],
        fraction=fraction,
        seed=seed,
        setting="dataset.test_fraction",
        cure="annotate the splits yourself",
        stream="test split",
    )
    clips = tuple(
        replace(clip, split=TEST) if is_held else clip
        for clip, is_held in zip(index.clips, held, strict=True)
    )
    by = "group" if any(clip.group for clip in clips) else "clip"
    drawn = {"fraction": fraction, "seed": seed, "by": by, "num_clips": int(held.sum())}
    whole = "whole groups" if by == "group" else "copies of a video together"
    note = (
        f"test split: {held.sum():,} of {len(clips):,} clips, drawn for dataset.test_fraction = "
        f"{fraction:g} with dataset.heldout_seed = {seed}, by class, {whole}"
    )
    return replace(index, clips=clips), drawn, note


def _hold_out_val(clips: tuple[Clip, ...], dataset: DatasetSettings) -> tuple[Clip, ...]:
    """The clips in their order, some of train in the split "val"."""
    if dataset.heldout_fraction == 0.0:
        return clips
    if any(clip.split == VAL for clip in clips):
        raise DataError(
            "the annotations have a val split of their own: set dataset.heldout_fraction to 0"
        )
    train = [clip for clip in clips if clip.split == TRAIN]
    by = dataset.heldout_by
    if by == "group" and not any(clip.group for clip in train):
        raise DataError(
            "dataset.heldout_by is group, but the annotations tell no groups: set it to clip"
        )
    if by == "auto":
        by = "group" if len({clip.group for clip in train if clip.group}) > 1 else "clip"
    held = hold_out_groups(
        [clip.label for clip in train],
        [(by == "group" and clip.group) or clip.sha256 for clip in train],
        fraction=dataset.heldout_fraction,
        seed=dataset.heldout_seed,
    )
    ids = {clip.id for clip, is_held in zip(train, held, strict=True) if is_held}
    return tuple(
        replace(clip, split=VAL) if clip.split == TRAIN and clip.id in ids else clip
        for clip in clips
    )
