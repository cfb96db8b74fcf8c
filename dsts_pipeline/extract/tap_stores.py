"""Several stores written side by side: the maps of several taps from one pass over the clips.

Enters: a store's writer for each tap, all with the same rows and the same shards. Leaves: what the
runner sees as one writer. A shard is claimed in all stores at once; those that have it already, or
whose lock another process holds, are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsts_pipeline.extract.shards_ahead import ShardWriter


class TapStores:
    """Writers of one store per tap.

    Raises:
        ValueError: Their shards are not of the same rows.
    """

    def __init__(self, writers: Sequence[ShardWriter]) -> None:
        self._writers = tuple(writers)
        self._held: dict[int, list[int]] = {}
        if len({writer.shard_clips(0) for writer in self._writers}) != 1:
            raise ValueError("the stores of several taps need shards of the same rows")

    def pending_shards(self) -> list[int]:
        """Numbers of the shards that some store lacks."""
        return sorted({shard for writer in self._writers for shard in writer.pending_shards()})

    def claim(self, *, wait: bool = True) -> int | None:
        """Lock a shard that some store lacks, in all that lack it."""
        for may_wait in (False, True) if wait else (False,):
            for writer in self._writers:
                shard = writer.claim(wait=may_wait)
                if shard is not None:
                    self._held[shard] = [
                        number
                        for number, each in enumerate(self._writers)
                        if each is writer or each.claim_shard(shard)
                    ]
                    return shard
        return None

    def claim_shard(self, shard: int) -> bool:
        """Lock this very shard in every store that lacks it; False if none can be had."""
        held = [number for number, each in enumerate(self._writers) if each.claim_shard(shard)]
        if held:
            self._held[shard] = held
        return bool(held)

    def shard_clips(self, shard: int) -> range:
        """Rows of a shard, the same in every store."""
        return self._writers[0].shard_clips(shard)

    def write_shard(
        self,
        shard: int,
        maps: Sequence[np.ndarray],
        failures: Mapping[int, str] | None = None,
    ) -> None:
        """Hand in the maps of every tap; those of stores that do not need them are dropped."""
        for number in self._held.pop(shard):
            self._writers[number].write_shard(shard, maps[number], failures)

    def flush(self) -> None:
        """Wait until what was handed in is on the disk."""
        for writer in self._writers:
            writer.flush()

    def failures(self) -> list[dict[str, Any]]:
        """Clips without a map in some store."""
        return [failure for writer in self._writers for failure in writer.failures()]
