"""Video files in, what is found in each out: probed and hashed in parallel, remembered at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.probe import VideoError, VideoInfo, probe
from dsts_pipeline.clips.probe_cache import ProbeCache, SeenVideo

_AHEAD = 16
MISSING, OUTSIDE = "the video file is missing", "a link that leads out of the data root"
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def look_at_videos(
    root: Path,
    paths: Iterable[str],
    *,
    cache: ProbeCache,
    num_workers: int,
    allow_outside: bool = False,
) -> dict[str, SeenVideo]:
    """What is in every one of `paths`, by path.

    A file that is no use has a reason; the reasons `MISSING` and `OUTSIDE` are not remembered, nor
    is a file that the system would not read.

    Args:
        root: Data root that the paths are relative to; a link may not lead out of it, unless
            `allow_outside`.
        num_workers: Videos looked at side by side.
    """
    paths = list(dict.fromkeys(paths))
    look = _Look(Path("/") if allow_outside else root.resolve(), cache)
    found: dict[str, SeenVideo] = {}
    num_bad = num_known = 0
    with track("Checking videos", len(paths), "videos") as progress:
        looks = _in_order(lambda path: look(root / path), paths, num_workers)
        for path, (seen, is_new) in zip(paths, looks, strict=True):
            if is_new and seen.size_bytes:
                cache.add(root / path, seen)
            found[path] = seen
            num_bad += bool(seen.reason)
            num_known += not is_new
            notes = [f"{num_known} known" if num_known else "", f"{num_bad} bad" if num_bad else ""]
            progress.advance(note=", ".join(filter(None, notes)) or None)
    return found


def _in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_workers: int
) -> Iterator[_Result]:
    """`map` over threads with a bounded number of items under way; decoders free the interpreter.

    Closing it, also by an interruption, drops what has not begun.
    """
    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(max(num_workers, 1))
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > _AHEAD * max(num_workers, 1):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Look:
    """Looks at one file: what is in it, and whether that was not known before.

    A file that is linked or copied under several names is read and probed once: by its place on the
    disk, or by its content.
    """

    def __init__(self, inside: Path, cache: ProbeCache) -> None:
        self._inside, self._cache = inside, cache
        self._by_content: dict[tuple[str, int], VideoInfo | str] = {}
        self._by_place: dict[tuple[int, int], SeenVideo] = {}

    def __call__(self, path: Path) -> tuple[SeenVideo, bool]:
        if not path.is_file():
            return SeenVideo(0, 0, reason=MISSING), True
        if not path.resolve().is_relative_to(self._inside):
            return SeenVideo(0, 0, reason=OUTSIDE), True
        known = self._cache.find(path)
        if known is not None:
            return known, False
        try:
            status = path.stat()
            size, mtime = status.st_size, status.st_mtime_ns
            place = (status.st_dev, status.st_ino)
            linked = self._by_place.get(place) if status.st_nlink > 1 else None
            if linked is not None and (linked.size_bytes, linked.mtime_ns) == (size, mtime):
                return linked, True
            sha256 = sha256_file(path)
            found = self._by_content.get((sha256, size))
            if found is None:
                found = self._by_content[sha256, size] = _probe(path)
        except OSError as error:
            reason = f"the system cannot read it: {error.strerror}"
            return SeenVideo(0, 0, reason=reason), True
        if isinstance(found, str):
            seen = SeenVideo(size, mtime, reason=found)
        else:
            seen = SeenVideo(size, mtime, found, sha256)
        self._by_place[place] = seen
        return seen, True


def _probe(path: Path) -> VideoInfo | str:
    """What is in a file, or why it is no use."""
    try:
        return probe(path)
    except VideoError as error:
        return error.reason
