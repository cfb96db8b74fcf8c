"""The manifest: written last, it says that a store is complete and what its files' digests are.

Enters: a plan and the sidecars of all shards, the small files that vouch for a complete shard each.
Leaves: the JSON document of docs/store-format.md.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import is_signed, read_json, sha256_file, sign
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.plan import StorePlan

REPAIR = "run `python cli.py verify --repair` to write it again"
REWRITE = "run `python cli.py extract` to write it again"


def build_manifest(
    plan: StorePlan,
    files: Mapping[str, Mapping[str, Any]],
    sidecars: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a complete store.

    Args:
        files: bytes and sha256 of every metadata file, by name.
        sidecars: one per shard, in order.
        provenance: JSON-able; where the store came from. No time of day belongs here, or a
            second extraction would not give the same bytes.
    """
    failures = [failure for sidecar in sidecars for failure in sidecar["failures"]]
    content = {
        "format": {"name": layout.FORMAT_NAME, "version": layout.FORMAT_VERSION},
        "fingerprint": plan.fingerprint,
        "made_of": dict(plan.fingerprint_parts),
        "array": {
            "shape": [plan.num_clips, *plan.map_shape],
            "stored_type": plan.dtype,
            "samples_per_shard": plan.samples_per_shard,
            "codecs": ["bytes", *(["zstd"] if plan.codec == "zstd" else []), "crc32c"],
            "on_overflow": plan.on_overflow,
        },
        "counts": count_clips(Counter(sample.split for sample in plan.samples), failures),
        "files": dict(files),
        "shards": [{"files": sidecar["files"]} for sidecar in sidecars],
        "failures": failures,
        "saturated": {
            key: sum(sidecar["saturated"][key] for sidecar in sidecars)
            for key in ("values", "clips")
        },
        "quantization": _sum_quantization([sidecar["quantization"] for sidecar in sidecars]),
        "provenance": dict(provenance),
    }
    return sign(content)


def count_clips(
    planned: Mapping[str, int], failures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest's "counts", from the number of planned maps by split and what failed."""
    num_planned = sum(planned.values())
    failed = Counter(failure["split"] for failure in failures)
    return {
        "planned": num_planned,
        "stored": num_planned - len(failures),
        "failed": len(failures),
        "splits": {
            split: {"planned": planned[split], "stored": planned[split] - failed[split]}
            for split in sorted(planned)
        },
    }


def stored_positions(manifest: Mapping[str, Any]) -> list[int]:
    """Places in the planned order of the maps that exist, ascending."""
    failed = {failure["position"] for failure in manifest["failures"]}
    return [place for place in range(manifest["array"]["shape"][0]) if place not in failed]


def _sum_quantization(shards: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """The error of int8 over a store: exact sums, so that the order of writing can't show."""
    sums = [shard for shard in shards if shard is not None]
    if not sums:
        return None
    squares = math.fsum(shard["value_squares"] for shard in sums)
    errors = math.fsum(shard["error_squares"] for shard in sums)
    return {
        "relative_rms_error": math.sqrt(errors / squares) if squares else 0.0,
        "largest_absolute_error": max(shard["largest_error"] for shard in sums),
    }


def drop_provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    """What two manifests must share to describe the same bytes."""
    return {key: value for key, value in content.items() if key not in ("provenance", "digest")}


def load_manifest(store: str | Path) -> dict[str, Any]:
    """Read a store's manifest and check that it is whole and of a known format.

    Raises:
        StoreError: no store, an unfinished one, another format version, or a damaged manifest.
    """
    store = Path(store)
    path = store / layout.MANIFEST_NAME
    if not store.is_dir():
        raise StoreError(f"{store}: no feature store here; run `python cli.py extract` to make it")
    if not path.exists():
        if not (store / layout.GROUP_NAME).exists():
            raise StoreError(
                f"{store}: not a feature store (no {layout.MANIFEST_NAME}, no "
                f"{layout.GROUP_NAME}); run `python cli.py extract` to make one"
            )
        done = len(list((store / "shards").glob("*.json")))
        raise StoreError(
            f"{store}: unfinished store ({done} shards written, no {layout.MANIFEST_NAME}); "
            "run `python cli.py extract`, which goes on from there"
        )
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(encoded: bytes, where: str) -> dict[str, Any]:
    """The content of a manifest file, checked. `where` is its path or URL, for messages.

    Raises:
        StoreError: another format version, or a damaged manifest.
    """
    try:
        content = json.loads(encoded.decode("utf-8-sig"))
        found = content["format"]["name"], content["format"]["version"]
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{where}: damaged, not a store's manifest; {REWRITE}") from None
    if found != (layout.FORMAT_NAME, layout.FORMAT_VERSION):
        raise StoreError(
            f"{where}: format is {found[0]} version {found[1]}, expected {layout.FORMAT_NAME} "
            f"version {layout.FORMAT_VERSION}; delete the store and run `python cli.py extract`, "
            "or use the release that wrote it"
        )
    if not is_signed(content):
        raise StoreError(f"{where}: damaged, its digest does not hold; {REWRITE}")
    return content


_SIDECAR_KEYS = {"fingerprint", "files", "failures", "saturated", "quantization"}


def find_sidecar(
    store: Path, plan: StorePlan, shard: int, *, digests: bool
) -> dict[str, Any] | None:
    """The sidecar of a complete shard of this plan; None where there is no such shard.

    Args:
        digests: compare the files' sha256 too, which reads them; else their sizes only.
    """
    try:
        sidecar = read_json(store / layout.name_sidecar(shard))
        if set(sidecar) != _SIDECAR_KEYS or sidecar["fingerprint"] != plan.fingerprint:
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
