"""The folder of a bundle: written whole or not at all, read only if every file is what it was.

`bundle.json` names every other file with its size and SHA-256 and bears a digest of itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import BundleError
from dsts_pipeline.base.files import fsync_directory, sha256_file, sha256_json, write_json

FORMAT = "dsts-bundle"
VERSION = 1
RECORD = "bundle.json"
_AGAIN = "export the bundle again, or get a sound copy"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends, and leaves no trace if it fails.

    Raises:
        BundleError: There is something at `path` already.
    """
    if path.exists():
        raise BundleError(f"{path} exists already; give another name, or delete it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield folder
        folder.chmod(0o755)
        fsync_directory(folder)
        try:
            os.rename(folder, path)
        except OSError as error:
            raise BundleError(
                f"{path}: the folder cannot be put there ({error.strerror})"
            ) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    fsync_directory(path.parent)


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write bundle.json over the files that are in `folder`, last of all."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(
        folder / RECORD, sign({"format": FORMAT, "version": VERSION, **content, "files": files})
    )


def sign(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its own digest added (or brought up to date)."""
    unsigned = {key: value for key, value in content.items() if key != "digest"}
    return unsigned | {"digest": sha256_json(unsigned)}


def read_record(folder: Path) -> dict[str, Any]:
    """The content of bundle.json, after every file that it names was compared.

    Raises:
        BundleError: There is no bundle, it is of another version, or a part is missing or is not
            the one that was exported; the message names the part.
    """
    path = folder / RECORD
    if not path.is_file():
        raise BundleError(
            f"{folder}: no bundle here (no {RECORD}); make one with "
            "`python cli.py export my_bundle --format bundle`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else "is no JSON record"
        raise BundleError(f"{path}: damaged, {reason}; {_AGAIN}") from None
    if found != (FORMAT, VERSION):
        raise BundleError(
            f"{path}: format {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}; "
            "export the bundle again with this version, or use the one that wrote it"
        )
    if sign(content) != content:
        raise BundleError(
            f"{path}: changed after it was written, its digest does not hold; {_AGAIN}"
        )
    _compare_files(folder, content["files"])
    return content


def _compare_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, promised in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{folder / RECORD}: names {name}, which is outside; {_AGAIN}")
        if not path.is_file():
            raise BundleError(f"{path}: missing, {RECORD} names it; {_AGAIN}")
        if (size := path.stat().st_size) != promised["bytes"]:
            raise BundleError(
                f"{path}: {size:,} bytes, {RECORD} expects {promised['bytes']:,}: damaged, or of "
                f"another bundle; {_AGAIN}"
            )
        if (digest := sha256_file(path)) != promised["sha256"]:
            raise BundleError(
                f"{path}: its sha256 is {digest[:12]}..., {RECORD} expects "
                f"{promised['sha256'][:12]}...: damaged, or of another bundle; {_AGAIN}"
            )
