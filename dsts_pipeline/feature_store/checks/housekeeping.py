"""What lies below a store root, and removing what nothing needs any more.

Enters: a root folder and the stores that something refers to. Leaves: an entry per folder. Links
are listed, never followed; a folder is removed only if it is a store down to its last file name.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import fsync_directory
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.checks.repair import keep_writers_out
from dsts_pipeline.feature_store.manifest import load_manifest
from dsts_pipeline.feature_store.plan import FINGERPRINT_LENGTH

_NAME = re.compile(f"[0-9a-f]{{{FINGERPRINT_LENGTH}}}")
_FOLDERS = ("", "maps", "scales", "frames", "shards")
_FILE = re.compile(
    r"zarr\.json|clips\.json|manifest\.json|\.writer\.lock|"
    r"(maps|scales|frames)/zarr\.json|(maps|scales|frames)/c(\.\d+)+|shards/\d+\.json|"
    r"((maps|scales|frames|shards)/)?\.[^/]*\.tmp"  # left by a writer that was killed
)


@dataclass(frozen=True)
class StoreEntry:
    """One folder below a root.

    Attributes:
        path: where it is. state: "complete", "unfinished, k of n shards", "older format (...)",
            "damaged manifest" or "not a store (...)".
        removable: whether it is recognisably a store, down to its last file.
        num_bytes: of all its files. num_maps: stored ones, None where not known.
        stored_type, backbone, dataset: empty where not known.
    """

    path: Path
    state: str
    removable: bool
    num_bytes: int
    num_maps: int | None = None
    stored_type: str = ""
    backbone: str = ""
    dataset: str = ""


def list_stores(root: str | Path) -> list[StoreEntry]:
    """All folders and links right below `root`, by name; an absent root holds none."""
    root = Path(root)
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        folders = [e for e in entries if e.is_symlink() or e.is_dir(follow_symlinks=False)]
    return [_describe(root / entry.name) for entry in sorted(folders, key=lambda e: e.name)]


def _describe(path: Path) -> StoreEntry:
    if path.is_symlink():
        return StoreEntry(path, "not a store (a link, not followed)", False, 0)
    names, strange, num_bytes = _list_names(path)
    if not _NAME.fullmatch(path.name) or not _is_group(path):
        return StoreEntry(path, "not a store", False, num_bytes)
    removable = not strange
    about = _read_about(path)
    if layout.MANIFEST_NAME not in names:
        done = sum(name.startswith("shards/") and name.endswith(".json") for name in names)
        planned = about.pop("num_shards")
        state = f"unfinished, {done} of {planned or '?'} shards"
    else:
        state = _tell_state(path)
        about.pop("num_shards")
    if strange:
        state += f"; holds {strange}, which is no part of a store"
    return StoreEntry(path, state, removable, num_bytes, **about)


def _list_names(store: Path) -> tuple[set[str], str, int]:
    """Names of all files, the first one that is no store's, and how many bytes they take."""
    names, strange, num_bytes = set(), [], 0
    for folder, subfolders, files in os.walk(store):
        inside = Path(folder).relative_to(store)
        for name in [*files, *subfolders]:
            path = Path(folder) / name
            relative = (inside / name).as_posix()
            is_folder = name in subfolders and not path.is_symlink()
            if is_folder:
                strange += [] if relative in _FOLDERS else [relative]
                continue
            names.add(relative)
            num_bytes += path.lstat().st_size
            if path.is_symlink() or not _FILE.fullmatch(relative):
                strange.append(relative)
    return names, min(strange, default=""), num_bytes


def _is_group(path: Path) -> bool:
    group = _read(path / layout.GROUP_NAME)
    return group.get("attributes", {}).get("format") == layout.FORMAT_NAME


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_about(path: Path) -> dict[str, Any]:
    """What the manifest and the array's metadata say, as far as there is anything."""
    manifest, array = _read(path / layout.MANIFEST_NAME), _read(path / layout.ARRAY_NAME)
    made_of = manifest.get("made_of", {})
    about: dict[str, Any] = {"num_shards": None, "num_maps": None, "stored_type": ""}
    try:
        num_maps = array["shape"][0]
        per_shard = array["chunk_grid"]["configuration"]["chunk_shape"][0]
        about["num_shards"] = -(-num_maps // per_shard)
        stored_type = array["attributes"].get("stored_type", array["data_type"])
        about["stored_type"] = str(stored_type)
        about["num_maps"] = manifest["counts"]["stored"] if manifest else None
    except (KeyError, TypeError, IndexError, AttributeError):
        pass
    about["backbone"] = _name(made_of, "backbone", "name")
    about["dataset"] = _name(made_of, "clips", "dataset")
    return about


def _name(made_of: Any, section: str, key: str) -> str:
    found = made_of.get(section) if isinstance(made_of, dict) else None
    return str(found.get(key, "")) if isinstance(found, dict) else ""


def _tell_state(path: Path) -> str:
    version = _read(path / layout.GROUP_NAME).get("attributes", {}).get("version")
    if version != layout.FORMAT_VERSION:
        return f"older format (version {version}, now {layout.FORMAT_VERSION})"
    try:
        manifest = load_manifest(path)
    except StoreError:
        return "damaged manifest"
    found = sum((path / layout.name_shard(k)).is_file() for k in range(len(manifest["shards"])))
    if found < len(manifest["shards"]):
        return f"damaged, {found} of {len(manifest['shards'])} shards there"
    return "complete"


def remove_store(root: str | Path, entry: StoreEntry) -> None:
    """Remove a store, its manifest first: stopped half-way it is an unfinished one.

    Raises:
        StoreError: it is not recognisably a store of `root`, or a writer holds it.
    """
    path = entry.path
    again = _describe(path)
    if path.parent != Path(root) or not again.removable:
        raise StoreError(f"{path}: {again.state}; not removed: look at it and delete it by hand")
    with keep_writers_out(path):
        (path / layout.MANIFEST_NAME).unlink(missing_ok=True)
        fsync_directory(path)
        names, _, _ = _list_names(path)
        # What tells that this is a store goes last, so that a later call can go on.
        for name in sorted(names, key=lambda name: (name == layout.GROUP_NAME, name)):
            (path / name).unlink(missing_ok=True)
        for folder in _FOLDERS[1:]:
            if (path / folder).is_dir():
                (path / folder).rmdir()
        path.rmdir()
    fsync_directory(path.parent)
