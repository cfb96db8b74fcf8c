"""The folder of a bundle: written whole or not at all, read only if every file is what it was.

`bundle.json` names every other file with its size and SHA-256 and bears a digest of itself. A
bundle may come from anywhere, so its folder is looked through before a file of it is opened: what
is not listed, links, and names that no export writes are refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import BundleError
from dsts_pipeline.base.files import (
    fsync_directory,
    is_signed,
    sha256_file,
    sign,
    unfinished_folder,
    write_json,
)

FORMAT = "dsts-bundle"
VERSION = 1
RECORD = "bundle.json"
BACKBONE_FOLDER = "backbone"  # where a model is a folder of the transformers library
# Files of a model's folder that are copied; see `transformers_models`.
FOLDER_FILES = re.compile(
    r"config\.json|(video_)?preprocessor_config\.json|"
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
# Weights are read by their content, whatever their name; no name of a program or config is let in.
_KNOWN_NAMES = re.compile(
    r"head\.json|head\.safetensors|MODEL_CARD\.md|"
    r"backbone(\.(safetensors|pth|pt|pth\.tar|tar|ckpt|bin))?|"
    rf"{BACKBONE_FOLDER}/({FOLDER_FILES.pattern})"
)
_AGAIN = "export the bundle again, or get a sound copy"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends, and leaves no trace if it fails.

    What an export that was killed left beside it is removed first.

    Raises:
        BundleError: There is something at `path` already.
    """
    if path.exists():
        raise BundleError(f"{path} exists already; give another name, or delete it first")
    with unfinished_folder(path) as folder:
        yield folder
        folder.chmod(0o755)
        fsync_directory(folder)
        try:
            os.rename(folder, path)
        except OSError as error:
            raise BundleError(
                f"{path}: the folder cannot be put there ({error.strerror})"
            ) from None
    fsync_directory(path.parent)


def is_known_name(name: str) -> bool:
    """Whether a file of a bundle may be called `name`, a path in it."""
    return _KNOWN_NAMES.fullmatch(name) is not None


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


def read_record(folder: Path) -> dict[str, Any]:
    """The content of bundle.json, after every file of the folder was compared with it.

    A folder that holds anything that bundle.json does not name, a link, or a file of a kind that no
    export writes, is refused before any of its files but bundle.json is opened.

    Raises:
        BundleError: There is no bundle, it is of another version, holds something else, or a part
            is missing or is not the one that was exported; the message names the part.
    """
    path = folder / RECORD
    if not path.is_file() or path.is_symlink():
        raise BundleError(
            f"{folder}: no bundle here (no {RECORD}); make one with "
            "`python cli.py export my_bundle --format bundle`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else "is no JSON record"
        raise BundleError(f"{path}: damaged, {reason}; {_AGAIN}") from None
    if found != (FORMAT, VERSION):
        raise BundleError(
            f"{path}: format {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}; "
            "export the bundle again with this version, or use the one that wrote it"
        )
    if not is_signed(content):
        raise BundleError(
            f"{path}: changed after it was written, its digest does not hold; {_AGAIN}"
        )
    files = content.get("files")
    _require_known_names(path, files)
    if unlisted := sorted(_list_plain_files(folder) - {RECORD, *files}):
        raise BundleError(
            f"{folder}: holds {unlisted[0]}, which {RECORD} does not name; a bundle holds what was "
            f"exported and nothing else: delete it if it is yours, or {_AGAIN}"
        )
    _compare_files(folder, files)
    return content


def _require_known_names(record: Path, files: Any) -> None:
    """Refuse names that lead elsewhere, and those of files that an export never writes."""
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise BundleError(f"{record}: damaged, it lists no files; {_AGAIN}")
    for name in files:
        parts = name.split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in name:
            raise BundleError(f"{record}: names {name}, which is outside; {_AGAIN}")
        if not is_known_name(name):
            raise BundleError(
                f"{record}: names {name}, a file that no export writes; a bundle holds a head, "
                f"weights and a card; {_AGAIN}"
            )


def _list_plain_files(folder: Path) -> set[str]:
    """Every file below `folder`, and folders that hold none, by relative name.

    Raises:
        BundleError: There is a link, or something that is neither file nor folder.
    """
    found: set[str] = set()
    waiting = [folder]
    while waiting:
        with os.scandir(current := waiting.pop()) as entries:
            names = list(entries)
        if not names and current != folder:
            found.add(Path(current).relative_to(folder).as_posix())
        for entry in names:
            name = Path(entry.path).relative_to(folder).as_posix()
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                found.add(name)
            else:
                kind = "a link" if entry.is_symlink() else "no plain file"
                raise BundleError(
                    f"{folder}: {name} is {kind}; a bundle holds plain files only: {_AGAIN}"
                )
    return found


def _compare_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, promised in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: missing, {RECORD} names it; {_AGAIN}")
        if (size := path.stat().st_size) != promised.get("bytes"):
            raise BundleError(
                f"{path}: {size:,} bytes, {RECORD} expects {promised.get('bytes')}: damaged, or "
                f"of another bundle; {_AGAIN}"
            )
        if (digest := sha256_file(path)) != promised.get("sha256"):
            raise BundleError(
                f"{path}: its sha256 is {digest[:12]}..., {RECORD} expects "
                f"{str(promised.get('sha256'))[:12]}...: damaged, or of another bundle; {_AGAIN}"
            )
