"""A store behind a URL: its files by name in, bytes, sizes and descriptors of local copies out.

s3://bucket/prefix/fingerprint, gs://, http(s)://, file://, memory://: whatever fsspec knows. The
files are those of docs/store-format.md as they are on a disk, uploaded by any tool that copies
folders, `manifest.json` best last. Small files are read directly; shards are downloaded whole into
a local cache of bounded size, their sha256 compared with the manifest's once, on arrival.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dsts_pipeline.base.errors import SettingsError, StoreError, UserError, explain_missing
from dsts_pipeline.base.transfers import Stalled, Taker, ask, copy_file, open_filesystem
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.files import list_shard_files
from dsts_pipeline.feature_store.manifest import parse_manifest

CACHE_DIR = ".feature_cache"
NUM_TRIES = 4
FIRST_PAUSE_SECONDS = 0.25  # between tries; each pause is four times the one before
NUM_STALLS = 2  # tries of a server that stalls, each of which takes long
_LISTING_STALLS = 10  # a large folder comes in many pages, whose number is known at the end alone
_NUM_PARALLEL = 16
_NO_LISTING = ("http", "https")

T = TypeVar("T")

# ---- the files behind the URL ------------------------------------------------------------------


class RemoteFiles:
    """The `StoreFiles` of a store behind a URL. Can be pickled, and used in threads and forks.

    Args:
        url: of the store's folder, without a query string.
        cache_dir: where downloaded shards are kept; `.feature_cache` where it is None.
        cache_bytes: what they may take together, of all stores that share the folder.
        stall_seconds: for so long a server may answer nothing, or next to nothing.

    Raises:
        StoreError: no such kind of address, or the package for it is not installed.
    """

    num_open = 0  # A deleted copy gives its space back only when it is closed.

    def __init__(
        self, url: str, *, cache_dir: str | Path | None, cache_bytes: int, stall_seconds: float
    ) -> None:
        self._stall_seconds = stall_seconds
        self.location = url.rstrip("/")
        self.cache = ShardCache(cache_dir or CACHE_DIR, cache_bytes)
        self._shard_files: dict[str, dict[str, Any]] = {}
        self._opened: tuple[int, Any, str] | None = None
        self._filesystem()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def load_manifest(self) -> dict[str, Any]:
        """The store's manifest, checked.

        Raises:
            StoreError: there is none, or one that is damaged or of another format version.
        """
        url = f"{self.location}/{layout.MANIFEST_NAME}"
        try:
            manifest = parse_manifest(self.read_bytes(layout.MANIFEST_NAME), url)
        except FileNotFoundError:
            raise StoreError(
                f"{url}: no such file, so there is no finished store; check the address, or "
                "upload the whole folder of a finished store"
            ) from None
        self._shard_files = {entry["file"]: dict(entry) for _, entry in list_shard_files(manifest)}
        return manifest

    def read_bytes(self, name: str) -> bytes:
        """As in `StoreFiles`.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: the network or the server fails again and again.
        """

        def read() -> bytes:
            content = io.BytesIO()
            self._copy(name, content)
            return content.getvalue()

        return _insist(read, f"{self.location}/{name}")

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """As in `StoreFiles`: a listing per folder; over http, which has none, a request per file.

        Raises:
            StoreError: as in `read_bytes`, or the cache's folder can't be written to.
            SettingsError: a file does not fit into the cache.
        """
        self.cache.shrink()
        has_listing = self.location.split("://")[0] not in _NO_LISTING
        found = self._list_folders(names) if has_listing else self._ask_each(names)
        if found:
            largest = max(found, key=lambda name: found[name])
            self.cache.require_room(found[largest], f"{self.location}/{largest}")
        return found

    def open_descriptor(self, name: str) -> int:
        """As in `StoreFiles`: of the copy in the cache, which is made if there is none.

        Raises:
            FileNotFoundError: the store has no such shard file.
            StoreError: it can't be downloaded, or is damaged on the server.
        """
        entry = self._entry(name)
        url = f"{self.location}/{name}"

        def download(sink: Sink) -> None:
            def once() -> None:
                sink.restart()
                self._copy(name, sink)
                sink.check(entry["sha256"])

            _insist(once, url)

        try:
            return self.cache.open(entry["sha256"], entry["bytes"], download)
        except WrongContent as problem:
            raise StoreError(
                f"{url}: {problem}; upload this file again from a sound store (there, "
                "`python cli.py verify --repair` mends it)"
            ) from None

    def refetch(self, name: str) -> bool:
        """As in `StoreFiles`: delete the copy, so that the next `open_descriptor` downloads it."""
        self.cache.discard(self._entry(name)["sha256"])
        return True

    def _entry(self, name: str) -> dict[str, Any]:
        if not self._shard_files:
            self.load_manifest()
        if name not in self._shard_files:
            raise FileNotFoundError(f"{self.location}/{name}")
        return self._shard_files[name]

    def _filesystem(self) -> tuple[Any, str]:
        """The fsspec file system and the store's path on it, opened anew after a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                filesystem, root = open_filesystem(self.location, self._stall_seconds)
            except ModuleNotFoundError as error:
                raise explain_missing(error, self.location) from None
            except (ImportError, ValueError) as error:
                raise StoreError(
                    f"{self.location}: can't open such an address ({error}); install what "
                    "fsspec takes for it"
                ) from None
            self._opened = (os.getpid(), filesystem, root.rstrip("/"))
        return self._opened[1], self._opened[2]

    def _copy(self, name: str, taker: Taker) -> None:
        filesystem, root = self._filesystem()
        copy_file(filesystem, f"{root}/{name}", taker, self._stall_seconds)

    def _list_folders(self, names: Sequence[str]) -> dict[str, int]:
        wanted = set(names)
        found = {}
        for folder in sorted({name.rpartition("/")[0] for name in names}):
            url = f"{self.location}/{folder}"

            def list_folder(folder: str = folder) -> list[dict[str, Any]]:
                filesystem, root = self._filesystem()
                filesystem.invalidate_cache()
                path = f"{root}/{folder}".rstrip("/")
                seconds = _LISTING_STALLS * self._stall_seconds
                return ask(filesystem, "ls", path, detail=True, stall_seconds=seconds)

            try:
                entries = _insist(list_folder, url)
            except FileNotFoundError:
                continue
            for entry in entries:
                name = f"{folder}/{entry['name'].rstrip('/').rpartition('/')[2]}".lstrip("/")
                if name in wanted and entry["type"] == "file":
                    found[name] = int(entry["size"])
        return found

    def _ask_each(self, names: Sequence[str]) -> dict[str, int]:
        def size_of(name: str) -> int | None:
            try:
                return _insist(lambda: self._ask(name), f"{self.location}/{name}")
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(_NUM_PARALLEL) as pool:
            try:
                answers = zip(names, pool.map(size_of, names), strict=True)
                return {name: size for name, size in answers if size is not None}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # thousands may wait for theirs
                raise

    def _ask(self, name: str) -> int:
        filesystem, root = self._filesystem()
        try:
            found = ask(filesystem, "info", f"{root}/{name}", stall_seconds=self._stall_seconds)
            size = found["size"]
        except FileNotFoundError as error:
            # fsspec takes any failure for a missing file.
            cause = error.__cause__
            if cause is None or getattr(cause, "status", None) in (404, 410):
                raise
            raise cause from None
        if size is None:
            raise StoreError(f"{self.location}/{name}: the server does not tell the file's size")
        return int(size)


def _insist(action: Callable[[], T], url: str) -> T:
    """Do it, again after a pause where the network or the server fails.

    Raises:
        FileNotFoundError: it is not there.
        WrongContent: it came, but wrong, every time.
        StoreError: everything else, naming `url`.
    """
    pause = FIRST_PAUSE_SECONDS
    attempt = 0
    while True:
        attempt += 1
        try:
            return action()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            status = getattr(error, "status", None) or 0
            refused = isinstance(error, PermissionError) or status in (400, 401, 403, 405)
            is_stalled = isinstance(error, Stalled)
            if refused or attempt == (NUM_STALLS if is_stalled else NUM_TRIES):
                if isinstance(error, WrongContent):
                    raise
                if is_stalled:
                    raise StoreError(
                        f"{url}: {error}, {attempt} times; check the network and the server, or "
                        "raise feed.stall_seconds, then run again"
                    ) from None
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                raise StoreError(
                    f"{url}: can't be read after {attempt} of {NUM_TRIES} tries ({reason}); "
                    "check the address, the network and your access, then run again"
                ) from None
            time.sleep(pause)
            pause *= 4


# ---- downloads and where they are kept ---------------------------------------------------------

_FINISHED = re.compile(r"[0-9a-f]{64}")
_COUNTED = re.compile(r"[0-9a-f]{64}(\.part)?")
_WAIT_SECONDS = 0.02


class WrongContent(Exception):
    """What arrived is not what was expected; the message tells in which way."""


class Sink:
    """Where a download goes: writes it, and compares its length and digest with the expected ones.

    It looks like a binary file to those who write into it.
    """

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file = file
        self._expected = num_bytes
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, block: bytes) -> int:
        """Take the next block.

        Raises:
            WrongContent: more bytes than expected.
        """
        if self._num_bytes + len(block) > self._expected:
            raise WrongContent(f"has more than the {self._expected} bytes that the manifest says")
        try:
            self._file.write(block)
        except OSError as error:
            raise cannot_write(Path(self._file.name).parent, error) from None
        self._digest.update(block)
        self._num_bytes += len(block)
        return len(block)

    def restart(self) -> None:
        """Forget what was taken, for another attempt."""
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def check(self, sha256: str) -> None:
        """Raise WrongContent unless exactly the expected bytes have come."""
        if self._num_bytes != self._expected:
            raise WrongContent(f"ended after {self._num_bytes} of {self._expected} bytes")
        if self._digest.hexdigest() != sha256:
            raise WrongContent("is damaged (sha256 does not hold)")

    def tell(self) -> int:
        """Bytes taken so far."""
        return self._num_bytes

    def read(self, size: int = -1) -> bytes:
        """Nothing can be read back: there for fsspec, which takes for a file what has it."""
        raise NotImplementedError

    def close(self) -> None:
        """The cache closes its file itself."""


def cannot_write(folder: Path, error: OSError) -> StoreError:
    """The error for a folder of downloads that takes no more."""
    return StoreError(
        f"{folder}: can't keep downloaded shards here ({error.strerror or error}); free space, or "
        "set feed.cache_dir to a folder that can be written to"
    )


class ShardCache:
    """A folder of downloaded files that never takes more than it may, shared by processes.

    A file bears its content's sha256 as its name, so several stores can share a cache, and what is
    there is whole:

        <sha256>        a file that was downloaded and found to have this digest
        <sha256>.part   one on its way; of full length from the start, locked by who downloads it
        .lock           held while files are counted, deleted and renamed

    Choice: the least recently opened files go first, before a download starts and not after it, so
    the bound holds at any moment. A deleted file that is still open takes disk space until its
    reader closes it. Holds no open file: can be pickled, forked and used in threads.

    Args:
        folder: made where it does not exist.
        max_bytes: what all files in it may take together.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = int(max_bytes)

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

    def open(self, sha256: str, num_bytes: int, download: Callable[[Sink], None]) -> int:
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

    def _fill(
        self, file: BinaryIO, sha256: str, num_bytes: int, download: Callable[[Sink], None]
    ) -> int:
        part = self._path(sha256, ".part")
        sink = Sink(file, num_bytes)
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
