"""Files that appear whole or not at all, their digests, and folders that one process has to itself.

Locks are the operating system's, so that they end with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dsts_pipeline.base.errors import BusyError, DataError
from dsts_pipeline.base.progress import console

# No room on the disk, in the user's share of it, or in the largest file that is allowed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where a spreadsheet would begin to read a formula: at the start of a cell, and behind what parts
# cells where lists are separated by semicolons. The full-width forms count in East Asian settings.
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=\s*[=+\-@＝＋－＠']|[\t\r\n])")
HELD = (errno.EACCES, errno.EAGAIN)  # of a lock that another process has


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file, fsync and rename.

    A reader sees the old file or the new one, never a part, also after a power cut.

    Raises:
        OSError: It can't be written; where the disk is full, with the bytes wanted and free.
    """
    with open_atomic(path, num_bytes=len(content)) as file:
        file.write(content)


@contextmanager
def open_atomic(path: str | Path, *, num_bytes: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write to that becomes `path` when the block ends, and leaves no trace if it fails.

    The temporary file beside it is named `.<name>.<random>.tmp`; a killed process leaves it, and
    `remove_left_overs` takes it away.

    Args:
        num_bytes: How large it will be, where that is known, to be told when it doesn't fit.

    Raises:
        OSError: As `write_atomic`, always with `path` as its file name.
    """
    path = Path(path)
    name = None
    num_written = 0
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = _new_locked(path, is_folder=False)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, 0o644)
                os.replace(name, path)  # before it is closed, which would unlock it
        except BaseException:
            if name is not None:
                num_written = Path(name).stat().st_size if os.path.exists(name) else 0
                Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        is_ours = name is None or error.filename == name
        if not is_ours and (error.filename is not None or error.errno not in NO_ROOM):
            raise  # of something else that the block was about
        if num_bytes is None:
            raise explain_refusal(error, path, f"more than {format_bytes(num_written)}") from None
        raise explain_refusal(error, path, num_bytes) from None
    fsync_directory(path.parent)


@contextmanager
def unfinished_folder(path: str | Path) -> Iterator[Path]:
    """A folder `.<name>.<random>.tmp` beside `path` to fill; what is left of it is removed.

    Renaming it is the caller's. What killed processes left under such names is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_overs(path)
    descriptor, name = _new_locked(path, is_folder=True)
    try:
        yield Path(name)
    finally:
        os.close(descriptor)
        shutil.rmtree(name, ignore_errors=True)


def remove_left_overs(path: str | Path) -> None:
    """Delete the temporary files and folders of `path` that no living process is writing.

    Where the file system has no locks nobody knows whose they are, and all of them stay.
    """
    path = Path(path)
    of_path = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        if not of_path.fullmatch(found.name) or found.is_symlink():
            continue
        with contextlib.suppress(OSError):  # taken away meanwhile, held, or no lock can be had
            descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if found.is_dir():
                    shutil.rmtree(found, ignore_errors=True)
                else:
                    found.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _new_locked(path: Path, *, is_folder: bool) -> tuple[int, str]:
    """A new temporary file or folder of `path`, and a descriptor of it, locked while it is open."""
    naming: dict[str, Any] = {"dir": path.parent, "prefix": f".{path.name}.", "suffix": ".tmp"}
    while True:
        if is_folder:
            name = tempfile.mkdtemp(**naming)
        else:
            created, name = tempfile.mkstemp(**naming)
        try:
            descriptor = os.open(name, os.O_RDONLY) if is_folder else created
        except FileNotFoundError:
            continue  # taken for a left-over in the instant before it was locked
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_still(name, descriptor):
            return descriptor, name
        os.close(descriptor)


def _is_still(path: str | Path, descriptor: int) -> bool:
    """Whether `path` is what was opened as `descriptor`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def fsync_directory(path: str | Path) -> None:
    """Make a rename inside directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- what a full disk is told as ---------------------------------------------------------------


def explain_refusal(error: OSError, path: str | Path, wanted: int | str | None = None) -> OSError:
    """`error` as one of the file `path`; of a full disk with the bytes wanted and free.

    Args:
        wanted: Bytes, or words for them.
    """
    if error.errno is None:
        return error
    reason = error.strerror or os.strerror(error.errno)
    if error.errno in NO_ROOM and " are free" not in reason:
        told = format_bytes(wanted) if isinstance(wanted, int) else wanted
        reason += f" ({f'{told} wanted, ' if told else ''}{tell_free(path)})"
    return OSError(error.errno, reason, str(path))


def tell_free(path: str | Path) -> str:
    """Such as "1.5 GB are free": on the disk of `path`, which need not exist, for this user."""
    place = Path(os.path.abspath(path))
    found = os.statvfs(next(one for one in (place, *place.parents) if one.exists()))
    text = f"{format_bytes(found.f_bavail * found.f_frsize)} are free"
    return f"{text}, but no more files" if found.f_files and not found.f_favail else text


def format_bytes(num_bytes: int) -> str:
    """Such as "1.5 GB"; powers of 1,000, as disks are sold and `df -H` counts."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


# ---- a folder that one process has to itself ---------------------------------------------------


@contextmanager
def hold_alone(folder: str | Path, work: str) -> Iterator[None]:
    """Keep other processes from the same while this one writes into `folder`.

    The lock is on the file `.<name>.lock` beside the folder, which is deleted in the end. A process
    that was killed leaves the file, and the kernel takes the lock away: the next one goes on.
    Record locks are used since processes that were started meanwhile don't inherit them.

    Args:
        folder: It need not be there.
        work: What this process does, told to others; such as "train-head".

    Raises:
        BusyError: Another process holds it.
    """
    folder = Path(folder)
    is_new = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = _lock(path, folder)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(
            descriptor, f"{work}, process {os.getpid()} on {socket.gethostname()}".encode(), 0
        )
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                folder.parent.rmdir()


def _lock(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
                os.close(descriptor)
                raise BusyError(
                    f"{folder}: {holder or 'another process'} is at work on it; wait for it or "
                    "stop it, or work in another folder"
                ) from None
            told = f"{folder}: no locks here ({error.strerror}); run one command at a time"
            console.print(told, soft_wrap=True)
            return descriptor
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # the one before deleted it as it ended


# ---- JSON, digests and tables ------------------------------------------------------------------


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically: same value, same bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file (a byte-order mark is accepted).

    Raises:
        DataError: The file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; `dvc repro` runs the stages that are missing"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); replace it by a sound copy") from None


def sign(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its own digest added (or brought up to date), under the name "digest"."""
    unsigned = {key: value for key, value in content.items() if key != "digest"}
    as_read = json.loads(json.dumps(unsigned))  # numbers as names become texts, and sort otherwise
    return unsigned | {"digest": sha256_json(as_read)}


def is_signed(content: Mapping[str, Any]) -> bool:
    """Whether `content` bears its own digest, and it holds."""
    try:
        return sign(content) == content
    except ValueError:  # it holds a NaN, which none of our files does
        return False


def read_signed(path: str | Path) -> Any:
    """Read a JSON file of ours; where it bears a digest of itself, it must hold.

    Raises:
        DataError: The file is missing, no JSON, or was changed after it was written.
    """
    content = read_json(path)
    if isinstance(content, dict) and "digest" in content and not is_signed(content):
        raise DataError(
            f"{path}: changed after it was written, its digest does not hold; run the stage that "
            "makes it again, or get a sound copy"
        )
    return content


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of `value` in canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV that no spreadsheet runs: names come from files of others.

    A text that would begin a formula (with =, +, -, @, a tab or a line's end, also behind blanks or
    a semicolon) gets an apostrophe before that place, and so does one that begins with an
    apostrophe. Taking the first apostrophe at each such place away gives the text back. Numbers
    stay as they are.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    text = io.StringIO(newline="")
    for row in (columns, *rows):
        line = io.StringIO(newline="")
        cells = [_FORMULA.sub("'", cell) if isinstance(cell, str) else cell for cell in row]
        # Only what is in the terminator is quoted inside a cell: a lone \r, too, has to be.
        csv.writer(line, lineterminator="\r\n").writerow(cells)
        text.write(line.getvalue().removesuffix("\r\n") + "\n")
    return text.getvalue()
