"""Writing a store: whole shards only, each by one process, the manifest last.

Any process may be killed at any instant, several may write one store at once: the shards that
are complete stay, the others are written by whoever is left, and the finished store has the same
bytes as that of one undisturbed process.

Memory: the maps of one shard as they were handed in, being written, and a few times one encoded
map. The caller may gather the next shard meanwhile; handing it in waits for the one before.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import write_atomic, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.claims import ShardClaims
from dsts_pipeline.feature_store.manifest import build_manifest, drop_provenance, load_manifest
from dsts_pipeline.feature_store.metadata import encode_metadata
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.storing import store_shard

POLL_SECONDS = 0.5


class StoreWriter:
    """Writes the store of `plan` into `root / plan.fingerprint`; several processes may at once.

    Use as a context manager, or call `close()`. One thread uses a writer; encoding, compression,
    hashing and waiting for the disk happen on a second one, whose errors come out at the next
    call.

    Raises:
        StoreError: the directory can't be written.
    """

    def __init__(self, root: str | Path, plan: StorePlan) -> None:
        self.plan = plan
        self.path = Path(root) / plan.fingerprint
        self._writing: tuple[int, Future[dict[str, Any]]] | None = None
        self._thread = ThreadPoolExecutor(1, "store-writer")
        try:
            for name in (*layout.name_shard_files(0, plan.dtype), layout.name_sidecar(0)):
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            self._claims = ShardClaims(self.path, plan)
            self._files = self._write_metadata()
        except OSError as error:
            raise _explain(self.path, error) from error

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def close(self) -> None:
        """Let the shard in work be finished, and other processes have all others."""
        self._thread.shutdown(wait=True)
        self._claims.locks.close()

    def _write_metadata(self) -> dict[str, dict[str, Any]]:
        files = {}
        for name, content in encode_metadata(self.plan).items():
            path = self.path / name
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
        """Numbers of the shards not known to be complete: absent, unconfirmed or damaged ones.

        The first call reads every shard that is there, to compare its digest (about 1 GB/s).
        What other processes completed since is noticed when it is claimed.
        """
        self.flush()
        return self._claims.pending()

    def failures(self) -> list[dict[str, Any]]:
        """Clips without a map in the shards known to be complete, as the manifest will list them.

        The shard handed in last is not among those; no waiting, no file is read.
        """
        sidecars = self._claims.sidecars
        return [failure for shard in sorted(sidecars) for failure in sidecars[shard]["failures"]]

    def claims(self) -> Iterator[int]:
        """Shards for this process to write, one after the other, until the store is complete.

        Where other processes hold the last ones, this waits for them, and takes over those of a
        process that died. Write each before the next is asked for.
        """
        while (shard := self.claim()) is not None:
            yield shard

    def claim(self, *, wait: bool = True) -> int | None:
        """Lock the next pending shard for this process until it is written.

        Args:
            wait: where other processes hold all that is pending, wait for them; None then means
                that the store is complete. Otherwise None means that nothing is free just now:
                write what is claimed, and ask again.

        Raises:
            StoreError: of the shard handed in last.
            ValueError: `wait`, though nothing is free and claimed shards are not written yet: the
                other process may be waiting for those.
        """
        told = False
        while True:
            shard = self._claims.take_any()
            if shard is not None or not wait:
                return shard
            self.flush()
            if claimed := self._claims.claimed:
                raise ValueError(f"shards {sorted(claimed)} are claimed but not written")
            left = self._claims.pending()
            if not left:
                return None
            if not told:
                told = True
                console.print(f"waiting for {len(left)} shards that other processes write")
            time.sleep(POLL_SECONDS)

    def claim_shard(self, shard: int) -> bool:
        """Lock this very shard; False if it is complete, or another process holds it."""
        return self._claims.take(shard)

    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        """Hand in one whole shard; it appears atomically, and then counts as done.

        Waits until the shard handed in before is written. `flush` waits for this one.

        Args:
            shard: its number. It is claimed first if it was not.
            maps: `[n, C, T, H, W]`, a row for every position of `shard_clips(shard)`, failed ones
                included (their rows are ignored). Any float type; cast to the storage type. Not
                to be changed before the next call of this writer returns.
            failures: reason by position (in the plan's order) of clips that have no map.

        Raises:
            StoreError: another process writes this shard; or of the shard before this one: a map
                holds NaN or Inf, or overflows the storage type, or the disk is full.
            ValueError: the number or shape of maps, or a failed position, is not the shard's.
        """
        positions, failures = self.shard_clips(shard), dict(failures or {})
        expected = (len(positions), *self.plan.map_shape)
        if tuple(maps.shape) != expected:
            raise ValueError(f"shard {shard}: maps are {tuple(maps.shape)}, expected {expected}")
        if stray := set(failures) - set(positions):
            raise ValueError(f"shard {shard}: failures at {sorted(stray)}, not in {positions}")
        self.flush()
        if not self._claims.retake(shard):
            raise StoreError(f"{self.path}: another process is writing shard {shard}; wait for it")
        task = self._thread.submit(store_shard, self.path, self.plan, shard, maps, failures)
        self._writing = shard, task

    def flush(self) -> None:
        """Wait until what was handed in is on the disk.

        Raises:
            StoreError: it could not be written. The shard is pending again.
        """
        if self._writing is None:
            return
        shard, task = self._writing
        try:
            sidecar = task.result()
        except Exception as error:
            self._writing = None
            self._claims.release(shard, None)
            if isinstance(error, OSError):
                raise _explain(self.path / layout.name_shard(shard), error) from error
            raise
        self._writing = None
        self._claims.release(shard, sidecar)

    def finish(self, provenance: Mapping[str, Any]) -> Path:
        """Write the manifest and return its path.

        A sound manifest that describes the very same files is left as it is, its provenance
        included: nothing new was made.

        Raises:
            StoreError: shards are pending.
        """
        self.flush()
        try:
            with self._claims.locks.finishing():
                return self._finish(provenance)
        except OSError as error:
            raise _explain(self.path / layout.MANIFEST_NAME, error) from error

    def _finish(self, provenance: Mapping[str, Any]) -> Path:
        found = self._claims.reread()
        sidecars = [sidecar for sidecar in found if sidecar is not None]
        if len(sidecars) < len(found):
            missing = [shard for shard, sidecar in enumerate(found) if sidecar is None]
            raise StoreError(
                f"{self.path}: shards {missing[:5]} of {len(found)} are not written; "
                "run `python cli.py extract`, which goes on from there"
            )
        content = build_manifest(self.plan, self._files, sidecars, provenance)
        path = self.path / layout.MANIFEST_NAME
        if self._claims.locks.are_real:  # Nobody writes now: what is left is of killed processes.
            for left_over in self.path.rglob(".*.tmp"):
                left_over.unlink(missing_ok=True)
        if not self.finished or drop_provenance(load_manifest(self.path)) != drop_provenance(
            content
        ):
            write_json(path, content)
        return path


def _explain(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: can't be written ({error.strerror or error}); free space or choose another "
        "store.root, then run `python cli.py extract`, which goes on from the finished shards"
    )
