"""A folder of downloaded files that never takes more than it may, shared by processes.

Enters: a digest, a size and a function that downloads. Leaves: an open descriptor. A file bears
its content's sha256 as its name, so several stores can share a cache, and what is there is whole:

    <sha256>        a file that was downloaded and found to have this digest
    <sha256>.part   one on its way; of full length from the start, locked by who downloads it
    .lock           held while files are counted, deleted and renamed

Choice: the least recently opened files go first, before a download starts and not after it, so
the bound holds at any moment. A deleted file that is still open takes disk space until its reader
closes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feature_store.remote.sink import Sink, cannot_write

_FINISHED = re.compile(r"[0-9a-f]{64}")
_COUNTED = re.compile(r"[0-9a-f]{64}(\.part)?")
_WAIT_SECONDS = 0.02

Download = Callable[[Sink], None]


class ShardCache:
    """See the module's text. Holds no open file: can be pickled, forked and used in threads.

    Args:
        folder: made where it does not exist.
        max_bytes: what all files in it may take together.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), int(max_bytes)

    def require_room(self, num_bytes: int, what: str) -> None:
        """Raise SettingsError if a file of `num_bytes` can never be kept."""
        if num_bytes > self.max_bytes:
            raise SettingsError(
                f"feed.cache_bytes is {self.max_bytes} and {what} takes {num_bytes} bytes; set "
                f"feed.cache_bytes to at least that, better to several times as much"
            )

    def shrink(self) -> None:
        """Bring a cache that was filled under a larger bound down to this one.

        Raises:
            StoreError: the folder can't be written to.
        """
        with self._locked():
            self._make_room(0)

    def open(self, sha256: str, num_bytes: int, download: Download) -> int:
        """A descriptor of the file with this digest, downloaded if it is not there.

        Args:
            download: writes the content into the `Sink` that it is given; called in one process
                and thread at a time for a digest, the others wait for its result.

        Raises:
            WrongContent: the content has another length or digest.
            StoreError: the folder can't be written to.
        """
        self.require_room(num_bytes, f"one file ({sha256[:12]}...)")
        while True:
            # No lock for what is there: it never changes, and may be deleted while it is open.
            if (descriptor := self._open_finished(sha256, num_bytes)) is not None:
                return descriptor
            with self._locked():
                descriptor = self._open_finished(sha256, num_bytes)
                if descriptor is not None:
                    return descriptor
                part = self._path(sha256, ".part")
                busy = self._open_if_busy(part)
                reserved = None
                if busy is None and self._make_room(num_bytes):
                    reserved = self._reserve(part, num_bytes)
            if busy is not None:
                _wait_for(busy)
            elif reserved is not None:
                with reserved:
                    return self._fill(reserved, sha256, num_bytes, download)
            else:
                time.sleep(_WAIT_SECONDS)  # others' downloads take the room for the moment

    def discard(self, sha256: str) -> None:
        """Delete a file that was found damaged."""
        with self._locked():
            self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str, ending: str = "") -> Path:
        return self.folder / f"{sha256}{ending}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # flock, not a record lock: it holds between threads of a process too.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "ab")
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                _unlock(lock)

    def _open_finished(self, sha256: str, num_bytes: int) -> int | None:
        path = self._path(sha256)
        try:
            descriptor = _open_to_read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        if os.fstat(descriptor).st_size != num_bytes:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        os.utime(descriptor)
        return descriptor

    def _open_if_busy(self, part: Path) -> int | None:
        """A descriptor of a download that is going on; what a killed process left is deleted."""
        try:
            descriptor = _open_to_read(part)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return descriptor
        os.close(descriptor)
        part.unlink()
        return None

    def _make_room(self, num_bytes: int) -> bool:
        """Delete files, the least recently opened first, until `num_bytes` more would fit."""
        with os.scandir(self.folder) as entries:
            found = [(entry, entry.stat()) for entry in entries if _COUNTED.fullmatch(entry.name)]
        total = sum(stat.st_size for _, stat in found)
        for entry, stat in sorted(found, key=lambda pair: pair[1].st_mtime_ns):
            if total + num_bytes <= self.max_bytes:
                break
            if _FINISHED.fullmatch(entry.name):
                os.unlink(entry.path)
                total -= stat.st_size
            elif (descriptor := self._open_if_busy(Path(entry.path))) is not None:
                os.close(descriptor)
            else:
                total -= stat.st_size
        return total + num_bytes <= self.max_bytes

    def _reserve(self, part: Path, num_bytes: int) -> BinaryIO:
        try:
            file = open(part, "wb", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.truncate(part, num_bytes)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        return file

    def _fill(self, file: BinaryIO, sha256: str, num_bytes: int, download: Download) -> int:
        part, sink = self._path(sha256, ".part"), Sink(file, num_bytes)
        try:
            download(sink)
            sink.check(sha256)
            with self._locked():
                descriptor = _open_to_read(part)
                os.replace(part, self._path(sha256))
            return descriptor
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            _unlock(file)


def _open_to_read(path: Path) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))


def _unlock(file: BinaryIO) -> None:
    """Closing is not enough: a process forked in the meantime has the file open too."""
    fcntl.flock(file, fcntl.LOCK_UN)


def _wait_for(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
