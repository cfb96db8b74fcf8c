"""Whether a store's files are there: the check before the first map is read.

A shard that is missing reads as fill values in every zarr reader, silently. So every shard's
presence and size, and the small files' digests, are compared with the manifest on opening.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store.manifest import REPAIR
from dsts_pipeline.feature_store.store_files import StoreFiles

_NUM_NAMED = 5


def list_shard_files(manifest: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """`(shard number, {"file", "bytes", "sha256"})` of every file of every shard."""
    for number, entry in enumerate(manifest["shards"]):
        for file in entry["files"] if "files" in entry else [entry]:
            yield number, file


def require_presence(files: StoreFiles, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """Check all files of a store and return the contents of the small ones.

    Raises:
        StoreError: naming the files that are missing or of the wrong size or digest.
    """
    small, damage = {}, []
    for name, expected in manifest["files"].items():
        try:
            small[name] = files.read_bytes(name)
        except FileNotFoundError:
            damage.append(f"file {name} is missing")
            continue
        if hashlib.sha256(small[name]).hexdigest() != expected["sha256"]:
            damage.append(f"file {name} is damaged (sha256 does not hold)")
    shards = list(list_shard_files(manifest))
    sizes = files.sizes([entry["file"] for _, entry in shards])
    for number, entry in shards:
        size = sizes.get(entry["file"])
        if size is None:
            damage.append(f"shard {number} ({entry['file']}) is missing")
        elif size != entry["bytes"]:
            problem = f"has {size} bytes, not {entry['bytes']}"
            damage.append(f"shard {number} ({entry['file']}) {problem}")
    if damage:
        more = f" and {len(damage) - _NUM_NAMED} more" if len(damage) > _NUM_NAMED else ""
        raise StoreError(f"{files.location}: {'; '.join(damage[:_NUM_NAMED])}{more}; {REPAIR}")
    return small
