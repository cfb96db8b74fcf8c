"""Which shards a run works on: claimed as its decode processes get to them, handed in in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from dsts_pipeline.extract.frames.decode_job import DecodeJob

_MAX_CLAIMED = 3  # more would leave less to other processes, and more to lose when one is stopped


class ShardWriter(Protocol):
    """What the runner asks of a store's writer; positions count the store's rows."""

    def pending_shards(self) -> list[int]: ...
    def claim(self, *, wait: bool = True) -> int | None: ...
    def claim_shard(self, shard: int) -> bool: ...
    def shard_clips(self, shard: int) -> range: ...
    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None: ...
    def flush(self) -> None: ...
    def failures(self) -> list[dict[str, Any]]: ...


class ShardSource(Protocol):
    """Where shards are claimed."""

    def claim(self, *, wait: bool = True) -> int | None: ...
    def shard_clips(self, shard: int) -> range: ...


class ShardsAhead:
    """The shards of this run.

    Attributes:
        claimed: Numbers of those that are not handed in yet, in order: the one in work, and those
            that the decode processes look ahead to, `_MAX_CLAIMED` at most.
    """

    def __init__(
        self, writer: ShardSource, plan_jobs: Callable[[range], Iterator[DecodeJob]]
    ) -> None:
        self._writer, self._plan_jobs = writer, plan_jobs
        self.claimed: deque[int] = deque()

    def jobs(self) -> Iterator[DecodeJob | None]:
        """The jobs of every shard of this run; None: not now, write what is claimed.

        Waits for other processes only with empty hands, or two could wait for each other.
        """
        while True:
            if len(self.claimed) >= _MAX_CLAIMED:
                yield None
                continue
            shard = self._writer.claim(wait=not self.claimed)
            if shard is not None:
                self.claimed.append(shard)
                yield from self._plan_jobs(self._writer.shard_clips(shard))
            elif self.claimed:
                yield None
            else:
                return
