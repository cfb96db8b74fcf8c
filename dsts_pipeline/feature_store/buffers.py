"""Memory for batches that is used again once nobody holds the batch any more.

Fresh memory costs as much as reading into it: the kernel maps and clears every page (51 MB for
32 maps of 1.6 MB), and gives it back when the batch is dropped. An array from a `BufferPool` is
an ordinary array; when the last view of it is gone, its memory serves the next batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

_WORTH_KEEPING = 2**20
_LARGEST_KEPT = 2**29  # A batch may be so large; a whole split that was dropped is to be free.
_ALIGNMENT = 64
NUM_SPARE = 2


class _Lease:
    """Owns the memory of one array; NumPy keeps it alive as long as any view of the array."""

    def __init__(self, memory: np.ndarray, spare: deque[np.ndarray]) -> None:
        self._memory, self._spare = memory, spare

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        if self._memory.nbytes <= _LARGEST_KEPT:
            self._spare.append(self._memory)


class BufferPool:
    """Gives out arrays, and keeps the memory of the latest few that were dropped.

    Args:
        num_spare: how many pieces of memory are kept while unused.
    """

    def __init__(self, num_spare: int = NUM_SPARE) -> None:
        self._num_spare = num_spare
        # Arrays may be dropped in any thread and at any time: a deque needs no lock.
        self._spare: deque[np.ndarray] = deque(maxlen=num_spare)

    def __getstate__(self) -> dict[str, Any]:
        return {"_num_spare": self._num_spare, "_spare": deque(maxlen=self._num_spare)}

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array of undefined content, C order."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _WORTH_KEEPING:
            return _allocate(num_bytes).view(dtype).reshape(shape)
        memory = self._take(num_bytes)
        return np.asarray(_Lease(memory, self._spare))[:num_bytes].view(dtype).reshape(shape)

    def _take(self, num_bytes: int) -> np.ndarray:
        while True:
            try:
                memory = self._spare.pop()  # The latest: a cache may still hold it.
            except IndexError:
                return _allocate(num_bytes)
            if num_bytes <= memory.nbytes <= 2 * num_bytes:
                return memory


def _allocate(num_bytes: int) -> np.ndarray:
    """Bytes at an address that vector instructions like.

    All batches start on one alignment, since matrix products may round otherwise on another.
    """
    memory = np.empty(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes]
