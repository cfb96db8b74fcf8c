"""Maps out of a store's shards: positions in, the batch's memory filled.

Positions are sorted by shard and slot, cut into portions, and the portions shared out among
threads, whoever is free taking the next one.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.chunks import read_chunks, read_index
from dsts_pipeline.feature_store.descriptors import Descriptors
from dsts_pipeline.feature_store.manifest import REPAIR
from dsts_pipeline.feature_store.presence import list_shard_files
from dsts_pipeline.feature_store.shards import ShardDamage, format_nameplate
from dsts_pipeline.feature_store.store_files import StoreFiles

_PORTION_BYTES = 2**21
_WORTH_A_THREAD = 2**18  # Bytes: waking a thread takes as long as reading so many.


class _Chunks(NamedTuple):
    """Chunks of one file and the memory (bytes, uint8) that each goes to."""

    name: str
    shard: int
    slots: list[int]
    targets: list[np.ndarray]


class ShardSource:
    """A `MapSource` over the shard files of a store (docs/store-format.md).

    Args:
        files: where they lie. manifest: the store's.
        verify_checksums: verify the crc32c of every map that is read.
        num_threads: threads that read one batch, the caller's among them.
    """

    def __init__(
        self,
        files: StoreFiles,
        manifest: Mapping[str, Any],
        *,
        verify_checksums: bool = True,
        num_threads: int = 1,
    ) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}, expected >= 1")
        self.files, self.verify_checksums, self.num_threads = files, verify_checksums, num_threads
        self._fingerprint = manifest["fingerprint"]
        self._samples_per_shard = int(manifest["array"]["samples_per_shard"])
        self._zstd = "zstd" in manifest["array"]["codecs"]
        self._sizes = {entry["file"]: entry["bytes"] for _, entry in list_shard_files(manifest)}
        self._start()

    def _start(self) -> None:
        """(Re)create what belongs to one process: threads, locks, open files."""
        self._process = os.getpid()
        self._descriptors = Descriptors(self.files)
        self._indices: dict[str, list[tuple[int, int]]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_process", "_descriptors", "_indices", "_pool")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """See `MapSource`."""
        if self._process != os.getpid():  # A forked child has its parent's locks but no threads.
            self._start()
        groups = list(self._group(positions, out, scales))
        missing = [group for group in groups if group.name not in self._indices]
        self._share(missing, self._load_index, len(missing))
        parts = [part for group in groups for part in self._cut(group)]
        self._share(parts, self._read, 1 + out.nbytes // _WORTH_A_THREAD)

    def _share(
        self, chunks: Sequence[_Chunks], action: Callable[[_Chunks], None], worth: int
    ) -> None:
        """Do `action` for each, in as many threads as it is worth."""
        left = deque(chunks)
        num_threads = min(self.num_threads, len(left), worth)
        if num_threads <= 1:
            return self._drain(left, action)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_threads - 1, "dsts-read")
        futures = [self._pool.submit(self._drain, left, action) for _ in range(num_threads - 1)]
        try:
            self._drain(left, action)
        finally:
            left.clear()  # After an error there is no more to do for the others.
            errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]
        return None

    def _drain(self, left: deque[_Chunks], action: Callable[[_Chunks], None]) -> None:
        while True:
            try:
                chunks = left.popleft()
            except IndexError:
                return
            try:
                self._try_twice(action, chunks)
            except (ShardDamage, OSError) as error:
                raise self._explain(chunks, error) from None

    def _try_twice(self, action: Callable[[_Chunks], None], chunks: _Chunks) -> None:
        """Do `action`, again on a fresh copy of the file where a copy was found damaged."""
        try:
            action(chunks)
        except ShardDamage:
            if not self.files.refetch(chunks.name):
                raise
            action(chunks)

    def _group(
        self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None
    ) -> Iterator[_Chunks]:
        """The chunks of each file concerned, in the file's order."""
        order = np.argsort(positions, kind="stable")
        shards, slots = np.divmod(positions[order], self._samples_per_shard)
        maps = list(out.reshape(len(out), math.prod(out.shape[1:])).view(np.uint8))
        rows = None if scales is None else list(scales.view(np.uint8))
        for chosen in np.split(np.arange(len(order)), np.flatnonzero(np.diff(shards)) + 1):
            if len(chosen) == 0:
                continue
            shard, ours = int(shards[chosen[0]]), slots[chosen].tolist()
            rank = order[chosen].tolist()
            yield _Chunks(layout.name_shard(shard), shard, ours, [maps[at] for at in rank])
            if rows is not None:
                yield _Chunks(layout.name_scales(shard), shard, ours, [rows[at] for at in rank])

    def _cut(self, group: _Chunks) -> Iterator[_Chunks]:
        """Portions that threads can share and the processor's cache holds."""
        step = max(1, _PORTION_BYTES // max(1, group.targets[0].nbytes))
        for start in range(0, len(group.slots), step):
            part = slice(start, start + step)
            yield group._replace(slots=group.slots[part], targets=group.targets[part])

    def _load_index(self, group: _Chunks) -> None:
        array = group.name.partition("/")[0]
        nameplate = format_nameplate(self._fingerprint, group.shard, array)
        with self._descriptors.borrow(group.name) as descriptor:
            self._indices[group.name] = read_index(
                descriptor, self._sizes[group.name], self._samples_per_shard, nameplate
            )

    def _read(self, part: _Chunks) -> None:
        with self._descriptors.borrow(part.name) as descriptor:
            read_chunks(
                descriptor,
                self._indices[part.name],
                part.slots,
                part.targets,
                verify=self.verify_checksums,
                zstd=self._zstd and part.name.startswith("maps/"),
            )

    def _explain(self, chunks: _Chunks, error: Exception) -> StoreError:
        if isinstance(error, FileNotFoundError):
            problem = "is missing"
        elif isinstance(error, OSError):
            problem = f"can't be read ({error.strerror or error})"
        else:
            problem = str(error)
        what = f"shard {chunks.shard} ({chunks.name})"
        return StoreError(f"{self.files.location}: {what} {problem}; {REPAIR}")
