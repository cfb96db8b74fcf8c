"""Video files in, what is found in each out: hashed and probed side by side, remembered at once."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.progress import track
from dsts_pipeline.clips.decode import name_decoder
from dsts_pipeline.clips.probe import VideoError, VideoInfo, probe

MISSING = "the video file is missing"
OUTSIDE = "a link that leads out of the data root"
# Looking at fewer files takes no longer than starting processes for it.
_MIN_FOR_PROCESSES = 200
_FILES_A_TASK = 8
_VERSION = 2  # of what is remembered


@dataclass(frozen=True)
class SeenVideo:
    """What was found in a video file: `info` and `sha256`, or the `reason` why it is no use."""

    size_bytes: int
    mtime_ns: int
    info: VideoInfo | None = None
    sha256: str = ""
    reason: str = ""


def look_at_videos(
    root: Path,
    paths: Iterable[str],
    *,
    cache_path: str | Path | None = None,
    num_workers: int = 1,
    allow_outside: bool = False,
) -> dict[str, SeenVideo]:
    """What is in every one of `paths`, by path.

    A file that is linked under several names is read once. A file that is no use has a reason; the
    reasons `MISSING` and `OUTSIDE` are not remembered, nor is one that the system would not read.

    Args:
        root: Data root that the paths are relative to; a link may not lead out of it, unless
            `allow_outside`.
        cache_path: Where to remember what was found, so that a kill costs nothing that was
            finished; None: nowhere.
        num_workers: Processes that look at videos.

    Raises:
        DataError: A process that looked at videos died; what was found by then is remembered.
    """
    paths = list(dict.fromkeys(paths))
    inside = Path("/") if allow_outside else root.resolve()
    found: dict[str, SeenVideo] = {}
    links: dict[tuple[int, int], list[str]] = {}
    with ProbeCache(cache_path) as cache:
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


# ---- what is known of videos that were looked at before ------------------------------------------


class ProbeCache:
    """A file of one line per video, "CRC32 JSON", written as soon as the video was looked at.

    It is open inside a `with` block. What it says counts where the video's size and modification
    time are still the same. A line that is cut off, damaged or of another version is passed over:
    its video is looked at again.

    Args:
        path: The file; its folder is made if need be. None remembers nothing.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._tools = [_VERSION, name_decoder("pyav")]
        self._seen: dict[str, SeenVideo] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> ProbeCache:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = self._path.read_bytes() if self._path.exists() else b""
            for line in content.splitlines():
                self._take(line)
            self._file = open(self._path, "ab")
            if content and not content.endswith(b"\n"):
                self._file.write(b"\n")  # a line that a kill cut off
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, path: Path) -> SeenVideo | None:
        """What is known of the file as it is now; None if it is new, was changed or is gone."""
        seen = self._seen.get(os.fspath(path))
        if seen is None:
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        same = (seen.size_bytes, seen.mtime_ns) == (status.st_size, status.st_mtime_ns)
        return seen if same else None

    def add(self, path: Path, seen: SeenVideo) -> None:
        """Remember `seen`, at once on disk."""
        self._seen[os.fspath(path)] = seen
        if self._file is None:
            return
        found = vars(seen) | {"info": seen.info and vars(seen.info)}
        text = json.dumps([self._tools, os.fspath(path), found]).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()

    def _take(self, line: bytes) -> None:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            return
        tools, path, found = json.loads(text)
        if tools == self._tools:
            info = found.pop("info")
            if info is not None:
                info = VideoInfo(**info | {"times_seconds": tuple(info["times_seconds"])})
            self._seen[path] = SeenVideo(**found, info=info)
