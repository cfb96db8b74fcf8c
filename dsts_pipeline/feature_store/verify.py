"""Damage to a finished store, found without decoding a map: presence, sizes, digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.feature_store.manifest import REPAIR
from dsts_pipeline.feature_store.presence import list_shard_files

_NUM_NAMED = 5


def list_files(manifest: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """`(what, path inside the store, {"bytes", "sha256"})` of every file a manifest vouches for."""
    metadata = [(f"file {name}", name, entry) for name, entry in manifest["files"].items()]
    shards = [
        (f"shard {number} ({entry['file']})", entry["file"], entry)
        for number, entry in list_shard_files(manifest)
    ]
    return metadata + shards


def find_damage(
    store: str | Path, manifest: Mapping[str, Any], *, digests: bool
) -> Iterator[tuple[str, str | None]]:
    """Check every file of a store, yielding `(what, problem or None)` for each, in order.

    Args:
        digests: compare sha256 too (reads everything); else presence and size of shards, and
            digests of the small metadata files only.
    """
    for what, name, expected in list_files(manifest):
        path = Path(store) / name
        is_small = name in manifest["files"]
        yield what, _find_problem(path, expected, digests or is_small)


def _find_problem(path: Path, expected: Mapping[str, Any], digest: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"has {size} bytes, not {expected['bytes']}"
        if digest and sha256_file(path) != expected["sha256"]:
            return "is damaged (sha256 does not hold)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return None


def require_sound(store: str | Path, manifest: Mapping[str, Any], *, digests: bool) -> None:
    """Raise a StoreError that names the damaged files, if there are any."""
    checks = find_damage(store, manifest, digests=digests)
    damage = [f"{what} {problem}" for what, problem in checks if problem]
    if damage:
        more = f" and {len(damage) - _NUM_NAMED} more" if len(damage) > _NUM_NAMED else ""
        raise StoreError(f"{store}: {'; '.join(damage[:_NUM_NAMED])}{more}; {REPAIR}")
