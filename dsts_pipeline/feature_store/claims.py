"""Which shards of a store are complete, whose the others are, and which this process takes next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.progress import track
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.locks import ShardLocks
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.sidecars import find_sidecar

_LONG_LOOK_BYTES = 4 * 2**30


class ShardClaims:
    """The state of a store's shards as one process sees it.

    Attributes:
        sidecars: by number, of shards known to be complete.
        claimed: numbers of shards that this process holds.
    """

    def __init__(self, store: Path, plan: StorePlan) -> None:
        self._store, self._plan = store, plan
        self._locks = ShardLocks(store)
        self.sidecars: dict[int, dict[str, Any]] = {}
        self.claimed: set[int] = set()
        self._damaged: set[int] = set()
        self._looked = False

    @property
    def locks(self) -> ShardLocks:
        """The locks behind the claims."""
        return self._locks

    def pending(self) -> list[int]:
        """Shards not known to be complete. The first call compares all digests that are there."""
        self._look()
        return [shard for shard in range(self._plan.num_shards) if shard not in self.sidecars]

    def unclaimed(self) -> list[int]:
        """Pending shards that this process does not hold."""
        return [shard for shard in self.pending() if shard not in self.claimed]

    def take_any(self) -> int | None:
        """Claim the first pending shard that is free; None if there is none."""
        return next((shard for shard in self.unclaimed() if self.take(shard)), None)

    def take(self, shard: int) -> bool:
        """Claim a shard, unless another process holds it or has completed it meanwhile."""
        if not self._locks.try_lock(shard):
            return False
        if self._recheck(shard):
            self._locks.unlock(shard)
            return False
        if self._locks.are_real:
            self._remove_left_overs(shard)
        self.claimed.add(shard)
        return True

    def retake(self, shard: int) -> bool:
        """Claim a shard even if it is complete, to write it again; False if it is another's."""
        if shard not in self.claimed and not self._locks.try_lock(shard):
            return False
        self.claimed.add(shard)
        self.sidecars.pop(shard, None)
        return True

    def release(self, shard: int, sidecar: dict[str, Any] | None) -> None:
        """Give a shard free, complete (with its sidecar) or not."""
        if sidecar is not None:
            self.sidecars[shard] = sidecar
            self._damaged.discard(shard)
        self.claimed.discard(shard)
        self._locks.unlock(shard)

    def reread(self) -> list[dict[str, Any] | None]:
        """The sidecars of all shards as they are now, whoever wrote them; None: not complete."""
        for shard in self.pending():
            self._recheck(shard)
        missing = set(self.pending())
        return [
            None if shard in missing else self._find(shard, digests=False)
            for shard in range(self._plan.num_shards)
        ]

    def _look(self) -> None:
        if self._looked:
            return
        present = [
            shard
            for shard in range(self._plan.num_shards)
            if shard not in self.sidecars and (self._store / layout.name_sidecar(shard)).exists()
        ]
        num_bytes = len(present) * self._plan.samples_per_shard * self._plan.sample_bytes
        if num_bytes < _LONG_LOOK_BYTES:
            for shard in present:
                self._compare(shard)
        else:
            with track("check shards that are there", len(present), "shards") as progress:
                for shard in present:
                    self._compare(shard)
                    progress.advance()
        self._looked = True

    def _compare(self, shard: int) -> None:
        sidecar = self._find(shard, digests=True)
        if sidecar is None:
            self._damaged.add(shard)
        else:
            self.sidecars[shard] = sidecar

    def _recheck(self, shard: int) -> bool:
        """Whether a pending shard is complete by now. Its writer has just computed the digests,
        unless what lies there is what this process found damaged."""
        sidecar = self._find(shard, digests=shard in self._damaged)
        if sidecar is not None:
            self.sidecars[shard] = sidecar
            self._damaged.discard(shard)
        return sidecar is not None

    def _find(self, shard: int, *, digests: bool) -> dict[str, Any] | None:
        return find_sidecar(self._store, self._plan, shard, digests=digests)

    def _remove_left_overs(self, shard: int) -> None:
        """Temporary files of a process that was killed while it wrote this shard."""
        files = layout.name_shard_files(shard, self._plan.dtype)
        for path in (self._store / name for name in (*files, layout.name_sidecar(shard))):
            for left_over in path.parent.glob(f".{path.name}.*.tmp"):
                left_over.unlink(missing_ok=True)
