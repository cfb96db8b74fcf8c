"""Which shards of an unfinished store can be trusted: those whose sidecar vouches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, sha256_file
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.plan import StorePlan

_KEYS = {"fingerprint", "files", "failures", "saturated", "quantization"}


def find_sidecar(
    store: Path, plan: StorePlan, shard: int, *, digests: bool
) -> dict[str, Any] | None:
    """The sidecar of a complete shard of this plan; None where there is no such shard.

    Args:
        digests: compare the files' sha256 too, which reads them; else their sizes only.
    """
    try:
        sidecar = read_json(store / layout.name_sidecar(shard))
        if set(sidecar) != _KEYS or sidecar["fingerprint"] != plan.fingerprint:
            return None
        names = [entry["file"] for entry in sidecar["files"]]
        if names != layout.name_shard_files(shard, plan.dtype):
            return None
        for entry in sidecar["files"]:
            path = store / entry["file"]
            if path.stat().st_size != entry["bytes"]:
                return None
            if digests and sha256_file(path) != entry["sha256"]:
                return None
        return sidecar
    except (DataError, KeyError, TypeError, FileNotFoundError, NotADirectoryError):
        return None
