"""Where a store's files lie: names inside the store in, bytes, sizes and descriptors out.

A reader needs no more of a file system than this, so a store on a disk and one behind a URL are
read by the same code. Names use "/", as in docs/store-format.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class StoreFiles(Protocol):
    """The files of one store, read only. Can be pickled, and used in threads and after a fork."""

    location: str
    """For messages: the directory or URL."""
    num_open: int
    """How many of them may stay open between reads."""

    def read_bytes(self, name: str) -> bytes:
        """Content of a small file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Bytes of each of `names` that exists; the others are left out."""

    def open_descriptor(self, name: str) -> int:
        """A descriptor for positioned reads of a file; the caller closes it.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def refetch(self, name: str) -> bool:
        """Told that a file is damaged: whether opening it again may give a sound one."""


class LocalFiles:
    """The files of a store in a directory.

    Args:
        path: the store's directory.
    """

    num_open = 64

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.location = str(path)

    def read_bytes(self, name: str) -> bytes:
        """See `StoreFiles`."""
        return (self.path / name).read_bytes()

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """See `StoreFiles`. Lists each folder once."""
        wanted: dict[str, set[str]] = {}
        for name in names:
            folder, _, base = name.rpartition("/")
            wanted.setdefault(folder, set()).add(base)
        found = {}
        for folder, bases in wanted.items():
            prefix = f"{folder}/" if folder else ""
            try:
                with os.scandir(self.path / folder) as entries:
                    for entry in entries:
                        if entry.name in bases and entry.is_file():
                            found[prefix + entry.name] = entry.stat().st_size
            except FileNotFoundError:
                continue
        return found

    def open_descriptor(self, name: str) -> int:
        """See `StoreFiles`."""
        return os.open(self.path / name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def refetch(self, name: str) -> bool:
        """See `StoreFiles`: no, it is the only copy."""
        return False
