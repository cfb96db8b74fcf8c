"""Writing a store: whole shards, each appearing at once or not at all, the manifest last.

A process may be killed at any instant: the next `StoreWriter` of the same plan finds the shards
that are complete, and the finished store has the same bytes as an undisturbed one's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import (
    fsync_directory,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
)
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.lock import lock_store
from dsts_pipeline.feature_store.manifest import build_manifest, drop_provenance, load_manifest
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.shards import encode_shard, format_nameplate


class StoreWriter:
    """Writes the store of `plan` into `root / plan.fingerprint`.

    One writer at a time: the directory is locked until `close()` or the end of the process. Use
    as a context manager, or call `close()`.

    Raises:
        StoreError: another process is writing this store, or the directory can't be written.
    """

    def __init__(self, root: str | Path, plan: StorePlan) -> None:
        self.plan = plan
        self.path = Path(root) / plan.fingerprint
        self._sound: dict[int, dict[str, Any]] = {}
        try:
            for folder in ("maps", "shards"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            self._lock = lock_store(self.path)
            self._files = self._write_metadata()
        except OSError as error:
            raise _explain(self.path, error) from error

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other writers in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write_metadata(self) -> dict[str, dict[str, Any]]:
        for left_over in self.path.rglob(".*.tmp"):
            left_over.unlink()
        documents = {
            layout.GROUP_NAME: layout.describe_group(self.plan.fingerprint),
            **self.plan.arrays,
            layout.CLIPS_NAME: self.plan.clip_table,
        }
        files = {}
        for name, document in documents.items():
            content, path = layout.encode_json(document), self.path / name
            if not path.exists() or path.read_bytes() != content:
                write_atomic(path, content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return files

    @property
    def finished(self) -> bool:
        """Whether the store has a sound manifest. Shards are not looked at."""
        try:
            return load_manifest(self.path)["fingerprint"] == self.plan.fingerprint
        except StoreError:
            return False

    def shard_clips(self, shard: int) -> range:
        """Positions (in the plan's order) of the clips in shard number `shard`."""
        return self.plan.positions_of(shard)

    def pending_shards(self) -> list[int]:
        """Numbers of the shards still to be written: absent, unconfirmed or damaged ones.

        Reads each shard once per writer, to compare its digest (about 1 GB/s).
        """
        pending = []
        for shard in range(self.plan.num_shards):
            if shard not in self._sound:
                sidecar = self._find_sound(shard)
                if sidecar is None:
                    pending.append(shard)
                else:
                    self._sound[shard] = sidecar
        return pending

    def _find_sound(self, shard: int) -> dict[str, Any] | None:
        path = self.path / layout.name_shard(shard)
        try:
            sidecar = read_json(self.path / layout.name_sidecar(shard))
            same_plan = sidecar["fingerprint"] == self.plan.fingerprint
            (entry,) = sidecar["files"]
            same_file = entry["file"] == layout.name_shard(shard)
            if not (same_plan and same_file and path.stat().st_size == entry["bytes"]):
                return None
            return sidecar if sha256_file(path) == entry["sha256"] else None
        except (DataError, KeyError, TypeError, ValueError, FileNotFoundError):
            return None

    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        """Write one whole shard, atomically: afterwards it counts as done, before not at all.

        Args:
            shard: its number.
            maps: `[n, C, T, H, W]`, a row for every position of `shard_clips(shard)`, failed ones
                included (their rows are ignored). Any float type; cast to the storage type.
            failures: reason by position (in the plan's order) of clips that have no map.

        Raises:
            StoreError: a map holds NaN or Inf, or overflows the storage type; a full disk.
            ValueError: the number or shape of maps, or a failed position, is not the shard's.
        """
        positions, failures = self.shard_clips(shard), dict(failures or {})
        expected = (len(positions), *self.plan.map_shape)
        if tuple(maps.shape) != expected:
            raise ValueError(f"shard {shard}: maps are {tuple(maps.shape)}, expected {expected}")
        if stray := set(failures) - set(positions):
            raise ValueError(f"shard {shard}: failures at {sorted(stray)}, not in {positions}")
        rows = [
            None if position in failures else self._cast(position, row)
            for position, row in zip(positions, maps, strict=True)
        ]
        nameplate = format_nameplate(self.plan.fingerprint, shard)
        content = encode_shard(rows, self.plan.samples_per_shard, nameplate)
        try:
            self._commit(shard, content, self._list_failures(failures))
        except OSError as error:
            raise _explain(self.path / layout.name_shard(shard), error) from error

    def _cast(self, position: int, row: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.ascontiguousarray(row, dtype=self.plan.dtype)
        finite = np.isfinite(stored)
        if not finite.all():
            channel = int(np.argmin(finite.all(axis=(1, 2, 3))))
            clip, value = self.plan.samples[position].id, row[channel][~finite[channel]][0]
            raise StoreError(
                f"clip {clip}: channel {channel} of its map holds {value}, which {self.plan.dtype} "
                "can't; set store.dtype to float32 if it overflows, else look at the weights"
            )
        return stored

    def _list_failures(self, failures: Mapping[int, str]) -> list[dict[str, Any]]:
        samples = self.plan.samples
        return [
            {"position": int(position), "reason": str(failures[position])}
            | {"id": samples[position].id, "split": samples[position].split}
            for position in sorted(failures)
        ]

    def _commit(self, shard: int, content: bytes, failures: list[dict[str, Any]]) -> None:
        manifest = self.path / layout.MANIFEST_NAME
        if manifest.exists():  # A repair: until it ends, the store is unfinished.
            manifest.unlink()
            fsync_directory(self.path)
        sidecar = {
            "fingerprint": self.plan.fingerprint,
            "files": [
                {
                    "file": layout.name_shard(shard),
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            ],
            "failures": failures,
            "saturated": {"values": 0, "clips": 0},
            "quantization": None,
        }
        write_atomic(self.path / layout.name_shard(shard), content)
        write_json(self.path / layout.name_sidecar(shard), sidecar)
        self._sound[shard] = sidecar

    def finish(self, provenance: Mapping[str, Any]) -> Path:
        """Write the manifest and return its path.

        A sound manifest that describes the very same files is left as it is, its provenance
        included: nothing new was made.

        Raises:
            StoreError: shards are pending.
        """
        if pending := self.pending_shards():
            raise StoreError(
                f"{self.path}: shards {pending[:5]} of {self.plan.num_shards} are not written; "
                "run `python cli.py extract`, which goes on from there"
            )
        sidecars = [self._sound[shard] for shard in range(self.plan.num_shards)]
        content = build_manifest(self.plan, self._files, sidecars, provenance)
        path = self.path / layout.MANIFEST_NAME
        if not self.finished or drop_provenance(load_manifest(self.path)) != drop_provenance(
            content
        ):
            try:
                write_json(path, content)
            except OSError as error:
                raise _explain(path, error) from error
        return path


def _explain(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: can't be written ({error.strerror or error}); free space or choose another "
        "store.root, then run `python cli.py extract`, which goes on from the finished shards"
    )
