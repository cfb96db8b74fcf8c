"""One shard onto the disk: float maps in, shard files and their sidecar out, each by rename.

Holds no more than one encoded map at a time; the store's writer calls it on its second thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import fsync_directory, open_atomic, write_json
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.codecs import compress_zstd
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.shards import ShardStream, format_nameplate, little_endian_bytes
from dsts_pipeline.feature_store.stored_types import (
    EncodedMap,
    UnstorableMap,
    encode_map,
    measure_quantization,
)


def store_shard(
    store: Path, plan: StorePlan, shard: int, maps: np.ndarray, failures: Mapping[int, str]
) -> dict[str, Any]:
    """Write a shard's files and then its sidecar, which is returned.

    Args:
        maps: `[n, C, T, H, W]` of any float type, a row per position of the shard.
        failures: reason by position of clips without a map; their rows are ignored.

    Raises:
        StoreError: a map can't be stored, where the plan does not say to list it as failed.
        OSError: the disk is full, or can't be written.
    """
    task = _Shard(plan, shard, failures)
    _announce_change(store)
    files = []
    for name in layout.name_shard_files(shard, plan.dtype):
        with open_atomic(store / name) as file:
            stream = ShardStream(file, plan.samples_per_shard)
            if name == layout.name_shard(shard):
                task.write_maps(stream, maps)
                written = stream.finish(format_nameplate(plan.fingerprint, shard))
            else:
                task.write_scales(stream)
                written = stream.finish(format_nameplate(plan.fingerprint, shard, "scales"))
        files.append({"file": name} | written)
    sidecar = {"fingerprint": plan.fingerprint, "files": files} | task.summary
    write_json(store / layout.name_sidecar(shard), sidecar)
    return sidecar


def _announce_change(store: Path) -> None:
    """Remove the manifest of a store that is repaired: until that ends it is unfinished."""
    manifest = store / layout.MANIFEST_NAME
    if manifest.exists():
        manifest.unlink(missing_ok=True)
        fsync_directory(store)


class _Shard:
    """What becomes known of a shard's maps while they are encoded one after the other."""

    def __init__(self, plan: StorePlan, shard: int, failures: Mapping[int, str]) -> None:
        self._plan, self._positions = plan, plan.positions_of(shard)
        self._failures = dict(failures)
        self._scales: dict[int, np.ndarray] = {}
        self._num_saturated: list[int] = []
        self._errors: list[dict[str, float]] = []

    def write_maps(self, stream: ShardStream, maps: np.ndarray) -> None:
        for slot, (position, source) in enumerate(zip(self._positions, maps, strict=True)):
            encoded = None if position in self._failures else self._encode(position, source)
            if encoded is None:
                continue
            content = little_endian_bytes(encoded.stored)
            if self._plan.codec == "zstd":
                stream.append(slot, compress_zstd(content, self._plan.zstd_level))
            else:
                stream.append(slot, content)
            if encoded.num_saturated:
                self._num_saturated.append(encoded.num_saturated)
            if encoded.scales is not None:
                self._scales[slot] = encoded.scales
                self._errors.append(measure_quantization(source, encoded))

    def write_scales(self, stream: ShardStream) -> None:
        for slot, scales in self._scales.items():
            stream.append(slot, little_endian_bytes(scales))

    def _encode(self, position: int, source: np.ndarray) -> EncodedMap | None:
        try:
            return encode_map(source, self._plan.dtype, self._plan.on_overflow)
        except UnstorableMap as problem:
            if self._plan.on_overflow == "fail":
                self._failures[position] = f"can't be stored: {problem}"
                return None
            cure = (
                "set store.dtype to bfloat16 or float32, or store.on_overflow to fail or saturate"
                if problem.overflows
                else "look at the video and the weights, or list such clips as failed with "
                "store.on_overflow = fail"
            )
            clip = self._plan.samples[position].id
            raise StoreError(f"clip {clip}: {problem}; {cure}") from None

    @property
    def summary(self) -> dict[str, Any]:
        """What a sidecar says beside the files."""
        samples = self._plan.samples
        failures = [
            {"position": int(position), "reason": str(self._failures[position])}
            | {"id": samples[position].id, "split": samples[position].split}
            for position in sorted(self._failures)
        ]
        return {
            "failures": failures,
            "saturated": {"values": sum(self._num_saturated), "clips": len(self._num_saturated)},
            "quantization": self._sum_errors() if self._plan.dtype == "int8" else None,
        }

    def _sum_errors(self) -> dict[str, float]:
        return {
            "error_squares": math.fsum(error["error_squares"] for error in self._errors),
            "value_squares": math.fsum(error["value_squares"] for error in self._errors),
            "largest_error": max((error["largest_error"] for error in self._errors), default=0.0),
        }
