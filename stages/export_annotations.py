"""The clip index as annotation lists for mmaction2's own tools."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.serve.annotation_lists import write_annotation_lists
from stages import places


def run(settings: Settings, out: Path) -> None:
    """Write a list per split, and the class names, into the folder `out`.

    Raises:
        DataError: There is no clip index, or a clip is no whole video.
    """
    index = ClipIndex.load(places.CLIP_INDEX)
    counts = write_annotation_lists(index, out)
    told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    console.print(f"{out}: lists of {told} clips; data_prefix is dict(video={index.root!r})")
