"""Published numbers of clips beside those at hand, every difference explained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dsts_pipeline.clips.annotation import UNLABELLED, Annotations
from dsts_pipeline.clips.index import ClipIndex


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
    usable, held_out = index.count_splits(), 0
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
