"""Files that appear whole or not at all, what is written into them, and their digests."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dsts_pipeline.base.errors import DataError

_BLOCK_BYTES = 1 << 20
# No room on the disk, in the user's share of it, or in the largest file that is allowed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where a spreadsheet would begin to read a formula: at the start of a cell, and behind what parts
# cells where lists are separated by semicolons. The full-width forms count in East Asian settings.
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=\s*[=+\-@＝＋－＠']|[\t\r\n])")


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

    The temporary file beside it is named `.<name>.<random>.tmp`; a killed process leaves it.

    Args:
        num_bytes: How large it will be, where that is known, to be told when it doesn't fit.

    Raises:
        OSError: As `write_atomic`, always with `path` as its file name.
    """
    path, name = Path(path), None
    num_written = 0
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
            )
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            if name is not None:
                num_written = Path(name).stat().st_size if os.path.exists(name) else 0
                Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        is_ours = name is None or error.filename == name
        if not is_ours and (error.filename is not None or error.errno not in NO_ROOM):
            raise  # of something else that the block was about
        more = f"more than {format_bytes(num_written)}"
        wanted = more if num_bytes is None else num_bytes
        raise explain_refusal(error, path, wanted) from None
    fsync_directory(path.parent)


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


def fsync_directory(path: str | Path) -> None:
    """Make a rename inside directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically: same value, same bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


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


def read_json(path: str | Path) -> Any:
    """Read a JSON file (a byte-order mark is accepted).

    Raises:
        DataError: The file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); replace it by a sound copy") from None


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of `value` in canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
