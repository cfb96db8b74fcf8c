"""Video files in, what is found in each out: hashed and probed side by side, remembered at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.probe import VideoError, probe
from dsts_pipeline.clips.probe_cache import ProbeCache, SeenVideo

MISSING, OUTSIDE = "the video file is missing", "a link that leads out of the data root"
# Looking at fewer files takes no longer than starting processes for it.
_MIN_FOR_PROCESSES, _FILES_A_TASK = 200, 8


def look_at_videos(
    root: Path,
    paths: Iterable[str],
    *,
    cache: ProbeCache,
    num_workers: int,
    allow_outside: bool = False,
) -> dict[str, SeenVideo]:
    """What is in every one of `paths`, by path.

    A file that is linked under several names is read once. A file that is no use has a reason; the
    reasons `MISSING` and `OUTSIDE` are not remembered, nor is one that the system would not read.

    Args:
        root: Data root that the paths are relative to; a link may not lead out of it, unless
            `allow_outside`.
        num_workers: Processes that look at videos.

    Raises:
        DataError: A process that looked at videos died; what was found by then is remembered.
    """
    paths = list(dict.fromkeys(paths))
    inside = Path("/") if allow_outside else root.resolve()
    found: dict[str, SeenVideo] = {}
    links: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        seen, place = _recall(root / path, inside, cache)
        if seen is not None:
            found[path] = seen
        else:
            links.setdefault(place, []).append(path)
    num_bad = sum(bool(seen.reason) for seen in found.values())
    num_known = sum(bool(seen.size_bytes) for seen in found.values())
    with track("Checking videos", len(paths), "videos", done=len(found)) as progress:
        known = f"{num_known} known" if num_known else ""
        progress.advance(0, note=known or None)
        firsts = [root / names[0] for names in links.values()]
        for names, seen in zip(links.values(), _look_at_all(firsts, num_workers), strict=True):
            num_bad += len(names) * bool(seen.reason)
            for path in names:
                found[path] = seen
                if seen.size_bytes:
                    cache.add(root / path, seen)
            note = ", ".join(filter(None, (known, f"{num_bad} bad" if num_bad else "")))
            progress.advance(len(names), note=note or None)
    return {path: found[path] for path in paths}


def _recall(
    path: Path, inside: Path, cache: ProbeCache
) -> tuple[SeenVideo | None, tuple[int, int]]:
    """What is known of a file without reading it, or None; and its place on the disk."""
    if not os.path.isfile(path):  # also where the name is longer than the system allows
        return SeenVideo(0, 0, reason=MISSING), (0, 0)
    if not path.resolve().is_relative_to(inside):
        return SeenVideo(0, 0, reason=OUTSIDE), (0, 0)
    status = path.stat()
    return cache.find(path), (status.st_dev, status.st_ino)


def _look_at_all(paths: Sequence[Path], num_workers: int) -> Iterator[SeenVideo]:
    if num_workers < 2 or len(paths) < _MIN_FOR_PROCESSES:
        yield from map(_look, paths)
        return
    tasks = [paths[at : at + _FILES_A_TASK] for at in range(0, len(paths), _FILES_A_TASK)]
    at = 0
    try:
        for task in map_in_processes(_look_at_some, tasks, num_workers=num_workers):
            yield from task
            at += len(task)
    except BrokenProcessPool:
        raise DataError(
            f"a process that looked at videos died, at {paths[at]} or one of the next "
            f"{_FILES_A_TASK * num_workers - 1}: free memory, or set dataset.num_probe_workers=1 "
            "to find which; what was found so far is remembered"
        ) from None


def _look_at_some(paths: Sequence[Path]) -> list[SeenVideo]:
    return [_look(path) for path in paths]


def _look(path: Path) -> SeenVideo:
    """What is in one file."""
    try:
        status = path.stat()
        size, mtime = status.st_size, status.st_mtime_ns
        try:
            return SeenVideo(size, mtime, probe(path), sha256_file(path))
        except VideoError as error:
            return SeenVideo(size, mtime, reason=error.reason)
    except OSError as error:
        return SeenVideo(0, 0, reason=f"the system cannot read it: {error.strerror}")
