"""What is known of videos that were looked at before: a kill costs nothing that was finished.

Enters: a file that grows by one line per video, "CRC32 JSON", written as soon as the video has been
looked at. Leaves: what was found, for a file whose size and modification time are still the same.
A line that is cut off, damaged or of another version is passed over: its video is looked at again.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from dsts_pipeline.clips.decode import name_decoder
from dsts_pipeline.clips.probe import VideoInfo

_VERSION = 2


@dataclass(frozen=True)
class SeenVideo:
    """What was found in a video file: `info` and `sha256`, or the `reason` why it is no use."""

    size_bytes: int
    mtime_ns: int
    info: VideoInfo | None = None
    sha256: str = ""
    reason: str = ""


class ProbeCache:
    """Use it in a `with` block; `path` None remembers nothing.

    Args:
        path: The file; its folder is made if need be.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._tools = [_VERSION, name_decoder("pyav")]
        self._seen: dict[str, SeenVideo] = {}
        self._file: BinaryIO | None = None
        self.num_damaged = 0

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            self.num_damaged += bool(line)
            return
        tools, path, found = json.loads(text)
        if tools == self._tools:
            info = found.pop("info")
            if info is not None:
                info = VideoInfo(**info | {"times_seconds": tuple(info["times_seconds"])})
            self._seen[path] = SeenVideo(**found, info=info)
