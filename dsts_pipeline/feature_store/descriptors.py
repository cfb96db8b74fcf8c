"""A bounded number of open files, kept open between reads.

Safe in threads: a file that is being read is never closed under its reader. Safe after a fork:
only positioned reads are made of these descriptors, so that processes may share them.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dsts_pipeline.feature_store.store_files import StoreFiles


@dataclass
class _Open:
    descriptor: int
    num_readers: int = 0


class Descriptors:
    """Opens files of a store on demand; the least recently used ones are closed.

    Args:
        files: where the files lie.
        num_open: how many stay open between reads (by default as many as `files` allows). While
            reading, each thread may hold one more.
    """

    def __init__(self, files: StoreFiles, num_open: int | None = None) -> None:
        self.files, self.num_open = files, files.num_open if num_open is None else num_open
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def borrow(self, name: str) -> Iterator[int]:
        """A descriptor of the file, open as long as the context lasts.

        Raises:
            FileNotFoundError: there is no such file.
        """
        entry = self._take(name)
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.num_readers -= 1
                if entry.num_readers == 0 and self._open.get(name) is not entry:
                    os.close(entry.descriptor)

    def _take(self, name: str) -> _Open:
        with self._lock:
            if entry := self._open.get(name):
                self._open.move_to_end(name)
                entry.num_readers += 1
                return entry
        descriptor = self.files.open_descriptor(name)  # May take long: a download.
        with self._lock:
            if entry := self._open.get(name):
                os.close(descriptor)
            else:
                entry = self._open[name] = _Open(descriptor)
            entry.num_readers += 1
            self._shrink(self.num_open)
            return entry

    def _shrink(self, num_open: int) -> None:
        while len(self._open) > num_open:
            _, oldest = self._open.popitem(last=False)
            if oldest.num_readers == 0:
                os.close(oldest.descriptor)

    def close(self) -> None:
        """Close every file that is not being read."""
        with self._lock:
            self._shrink(0)

    def __del__(self) -> None:
        for entry in self._open.values():
            os.close(entry.descriptor)
