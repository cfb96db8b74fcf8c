"""What a person should know of a data set before anything costly is computed on it.

Enters: the annotations, the clip index made of them, the videos that lie around. Leaves: findings,
as a table for the terminal and as JSON. None of them stops the pipeline: what does is an error.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from dsts_pipeline.clips.annotation import (
    TEST,
    TRAIN,
    UNLABELLED,
    Annotations,
    is_video,
    name_clip,
    printable,
)
from dsts_pipeline.clips.index import Clip, ClipIndex, EndFrameRule

_NUM_SHOWN = 3


@dataclass(frozen=True)
class Findings:
    """What a person should know of a data set; clips are named "split/id".

    Attributes:
        annotated: Annotated clips by split, unlabelled ones too.
        usable: Clips in the index by split.
        problems: Annotated clips that cannot be used, by kind.
        copies: Files of the same content under several names.
        duplicates: Clips that show the same frames of the same content under several names.
        overlapping: Clips of several splits that share frames of a video, without being the same.
        groups_in_several_splits: Groups with clips in more than one split.
        in_several_splits: Those of them that are in more than one split, and ids that are.
        classes_without_clips: Classes that no annotation names.
        classes_without: By split, classes with clips elsewhere but no usable one there.
        extra_videos: Files that no annotation names.
        cut_ranges: Clips whose annotated end is beyond their video's end.
        end_frame: How `end_frame` was read, and why.
        official: Comparison with the published counts, or empty.
        codecs, sizes_px, frame_rates: Number of clips by what their video is.
        total_seconds: Length of all clips' videos that tell their frame rate.
        reasons: Why each of `problems` cannot be used, by its name.
        similar_classes: Class names that differ in case or space alone.
        notes: What else a person should know, in sentences.
        test_split: How the test split was drawn, or empty: its fraction, seed, what was kept
            together and how many clips it has.
    """

    annotated: dict[str, int]
    usable: dict[str, int]
    problems: dict[str, tuple[str, ...]]
    copies: tuple[tuple[str, ...], ...]
    duplicates: tuple[tuple[str, ...], ...]
    in_several_splits: tuple[tuple[str, ...], ...]
    overlapping: tuple[tuple[str, ...], ...]
    groups_in_several_splits: tuple[str, ...]
    classes_without_clips: tuple[str, ...]
    classes_without: dict[str, tuple[str, ...]]
    extra_videos: tuple[str, ...]
    cut_ranges: tuple[str, ...]
    end_frame: EndFrameRule
    official: tuple[CountComparison, ...]
    codecs: dict[str, int]
    sizes_px: dict[str, int]
    frame_rates: dict[str, int]
    total_seconds: float
    reasons: dict[str, str] = field(default_factory=dict)
    similar_classes: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    test_split: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """A JSON-able dictionary of everything."""
        texts = {"end_frame": str(self.end_frame), "official": [str(c) for c in self.official]}
        return asdict(self) | {"texts": texts}

    def rows(self) -> list[tuple[str, int, str]]:
        """What was found: `(finding, number, first examples)`; nothing if all is in order."""
        lists: list[tuple[str, Sequence[Any]]] = [
            *((f"unusable: {kind}", names) for kind, names in sorted(self.problems.items())),
            ("same file under several names", self.copies),
            ("same frames under several ids", self.duplicates),
            ("in several splits", self.in_several_splits),
            ("overlapping, in several splits", self.overlapping),
            ("groups in several splits", self.groups_in_several_splits),
            ("classes without any clip", self.classes_without_clips),
            ("class names that differ in case or space alone", self.similar_classes),
            *((f"classes without a {s} clip", names) for s, names in self.classes_without.items()),
            ("videos that no annotation names", self.extra_videos),
            ("ranges cut at the video's end", self.cut_ranges),
        ]
        return [(name, len(found), _examples(found)) for name, found in lists if found]

    def lines(self) -> list[str]:
        """What is said of every data set that it applies to, in sentences."""
        lines = [f"published counts: {comparison}" for comparison in self.official]
        if self.end_frame.num_annotated:
            lines.append(str(self.end_frame))
        return lines + list(self.notes)

    def table(self) -> Table | None:
        """`rows` to print; None if all is in order."""
        rows = self.rows()
        if not rows:
            return None
        table = Table(title="Worth a look", title_justify="left")
        table.add_column("finding")
        table.add_column("number", justify="right")
        table.add_column("first ones", overflow="fold")
        for name, number, examples in rows:
            table.add_row(name, f"{number:,}", examples)
        return table


def _examples(found: Sequence[Any]) -> str:
    """The first ones; of a group its first names, however many it has."""
    shown = []
    for example in found[:_NUM_SHOWN]:
        names = example if isinstance(example, tuple) else (example,)
        rest = len(names) - _NUM_SHOWN
        more = f" = {rest:,} more" if rest > 0 else ""
        shown.append(" = ".join(names[:_NUM_SHOWN]) + more)
    return ", ".join(shown) + (", ..." if len(found) > _NUM_SHOWN else "")


def collect_findings(
    annotations: Annotations,
    index: ClipIndex,
    *,
    root: Path,
    end_frame: EndFrameRule,
    cut_ranges: Iterable[str],
    official_counts: bool,
    test_split: dict[str, Any],
) -> Findings:
    """Compare what was annotated with what was found below `root`."""
    problems: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, str] = {}
    for problem in index.problems:
        problems[problem.kind].append(name := name_clip(problem.split, problem.clip_id))
        reasons[name] = problem.reason
    annotated = Counter(clip.split for clip in annotations.clips)
    annotated += Counter(clip.split for clip in annotations.unusable)
    annotated += Counter({UNLABELLED: len(annotations.unlabelled)})
    duplicates = _group_names(
        ((clip.sha256, clip.start_frame, clip.end_frame), name_clip(clip.split, clip.id))
        for clip in index.clips
    )
    same_ids = _group_names((clip.id, name_clip(clip.split, clip.id)) for clip in annotations.clips)
    paths = dict.fromkeys((clip.sha256, clip.path) for clip in index.clips)
    by_split: dict[str, set[int]] = defaultdict(set)
    for clip in index.clips:
        by_split[clip.split].add(clip.label)
    named = {clip.label for clip in annotations.clips}
    return Findings(
        annotated=dict(annotated),
        usable=index.count_splits(),
        problems={kind: tuple(names) for kind, names in problems.items()},
        copies=_group_names(paths),
        duplicates=duplicates,
        in_several_splits=tuple(
            group
            for group in dict.fromkeys(same_ids + duplicates)
            if len({name.split("/")[0] for name in group}) > 1
        ),
        overlapping=_find_overlaps(index.clips),
        groups_in_several_splits=_find_shared_groups(index.clips),
        classes_without_clips=_names(index, set(range(len(index.class_names))) - named),
        classes_without={
            split: _names(index, named - by_split[split])
            for split in (TRAIN, TEST)
            if (annotated[split] or by_split[split]) and named - by_split[split]
        },
        extra_videos=tuple(list_extra_videos(annotations, root)),
        cut_ranges=tuple(cut_ranges),
        end_frame=end_frame,
        official=compare_counts(annotations, index) if official_counts else (),
        codecs=_count(clip.codec for clip in index.clips),
        sizes_px=_count(f"{clip.width_px} x {clip.height_px}" for clip in index.clips),
        frame_rates=_count(f"{clip.fps:.3f}".rstrip("0").rstrip(".") for clip in index.clips),
        total_seconds=round(sum(clip.duration_seconds or 0.0 for clip in index.clips), 3),
        reasons=reasons,
        similar_classes=_group_names((_fold(name), name) for name in index.class_names),
        notes=annotations.notes,
        test_split=test_split,
    )


def _group_names(pairs: Iterable[tuple[Hashable, str]]) -> tuple[tuple[str, ...], ...]:
    """Names of equal keys, in order, where there are several."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for key, name in pairs:
        groups[key].append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _fold(class_name: str) -> str:
    """Equal for names that a person would take for one."""
    folded = unicodedata.normalize("NFKC", class_name).casefold()
    return "".join(sign for sign in folded if sign not in " _-")


def _find_overlaps(clips: Iterable[Clip]) -> tuple[tuple[str, ...], ...]:
    """Pairs of neighbouring clips of one content that share frames across splits."""
    by_content: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_content[clip.sha256].append(clip)
    pairs = []
    for of_file in by_content.values():
        last: dict[str, Clip] = {}  # of each split the clip that ends last so far
        for clip in sorted(of_file, key=lambda clip: (clip.start_frame, clip.end_frame)):
            for split, other in last.items():
                same = (other.start_frame, other.end_frame) == (clip.start_frame, clip.end_frame)
                if split != clip.split and other.end_frame > clip.start_frame and not same:
                    pairs.append((name_clip(split, other.id), name_clip(clip.split, clip.id)))
            before = last.get(clip.split)
            if before is None or before.end_frame <= clip.end_frame:
                last[clip.split] = clip
    return tuple(pairs)


def _find_shared_groups(clips: Iterable[Clip]) -> tuple[str, ...]:
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.group is not None:
            splits[clip.group].add(clip.split)
    return tuple(group for group, found in splits.items() if len(found) > 1)


def _names(index: ClipIndex, labels: Iterable[int]) -> tuple[str, ...]:
    return tuple(index.class_names[label] for label in sorted(labels))


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def list_extra_videos(annotations: Annotations, root: Path) -> list[str]:
    """Video files in the data set's folders that no annotation names, relative to `root`.

    They can be printed: a name that is no text is written with escapes.
    """
    named = {clip.path for clip in (*annotations.clips, *annotations.unlabelled)}
    named |= {clip.path for clip in annotations.unusable}
    extra: set[str] = set()
    for folder in annotations.video_folders:
        for directory, folders, files in os.walk(root / folder):
            folders[:] = [name for name in folders if name[0] != "."]
            inside = directory if os.path.isabs(folder) else os.path.relpath(directory, root)
            prefix = "" if inside == "." else f"{inside}/"
            extra.update(
                printable(prefix + name) for name in files if is_video(name) and name[0] != "."
            )
    return sorted(extra - named)


# ---- published numbers of clips beside those at hand, every difference explained -----------------


@dataclass(frozen=True)
class CountComparison:
    """One split.

    Attributes:
        split: Its name in the index.
        published: Clips as published.
        annotated: Clips in the annotation file.
        held_out: Of these, clips held out as the split "val".
        unusable: Of these, clips that cannot be used, by kind of problem.
        usable: Clips in the index; None for a split without labels, which is not indexed.
    """

    split: str
    published: int
    annotated: int
    held_out: int
    unusable: dict[str, int]
    usable: int | None

    def __str__(self) -> str:
        parts = [f"{self.split}: {self.published:,} published"]
        difference = self.annotated - self.published
        if difference:
            word = "more" if difference > 0 else "fewer"
            parts.append(
                f"{self.annotated:,} annotated, {abs(difference):,} {word} (another release of the "
                "annotations, or a part of it)"
            )
        else:
            parts.append("as many annotated")
        parts += [f"{number:,} {kind}" for kind, number in sorted(self.unusable.items())]
        if self.held_out:
            parts.append(f"{self.held_out:,} held out as val")
        parts.append("not indexed: no labels" if self.usable is None else f"{self.usable:,} usable")
        return ", ".join(parts)


def compare_counts(annotations: Annotations, index: ClipIndex) -> tuple[CountComparison, ...]:
    """One comparison per split of `annotations.official_counts`.

    The numbers add up: annotated = usable + held out + unusable.
    """
    annotated = Counter(clip.split for clip in annotations.clips)
    annotated[UNLABELLED] = len(annotations.unlabelled)
    usable = index.count_splits()
    held_out = 0
    if not annotated["val"]:
        held_out = usable.get("val", 0)  # these were annotated as train
    comparisons = []
    for split, published in annotations.official_counts:
        kinds = Counter(problem.kind for problem in index.problems if problem.split == split)
        comparisons.append(
            CountComparison(
                split=split,
                published=published,
                annotated=annotated[split],
                held_out=held_out if split == "train" else 0,
                unusable=dict(kinds),
                usable=None if split == UNLABELLED else usable.get(split, 0),
            )
        )
    return tuple(comparisons)
