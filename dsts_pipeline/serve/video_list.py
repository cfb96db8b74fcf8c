"""Files and folders as typed -> the videos that are meant, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import VIDEO_SUFFIXES


@dataclass(frozen=True)
class VideoList:
    """Videos, each once, and how many files of folders were left out as no videos by name."""

    paths: tuple[Path, ...]
    num_left_out: int = 0


def list_videos(sources: Sequence[Path]) -> VideoList:
    """Files as given, whatever their names, and all videos by name below folders.

    Raises:
        DataError: There is no such file or folder, or no video in any of them.
    """
    paths: dict[Path, None] = {}
    num_left_out = 0
    for source in sources:
        if not os.path.exists(source):  # also where the name is too long for the system
            raise DataError(f"{source}: no such file or folder; expected videos or folders")
        if not source.is_dir():
            paths[source] = None
            continue
        files = sorted(path for path in source.rglob("*") if not path.is_dir())
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        paths |= dict.fromkeys(videos)
        num_left_out += len(files) - len(videos)
    if not paths:
        raise DataError(
            f"{', '.join(map(str, sources))}: no video in it; expected files that end in "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return VideoList(tuple(paths), num_left_out)


def name_outputs(paths: Sequence[Path], suffix: str) -> list[str]:
    """A file name for each of `paths`: its stem, numbered where two have the same, and `suffix`."""
    names: dict[str, None] = {}
    for path in paths:
        stem, number = path.stem, 2
        while stem + suffix in names:
            stem, number = f"{path.stem}-{number}", number + 1
        names[stem + suffix] = None
    return list(names)
