"""Where a download goes: blocks in, a file out whose length and digest were compared on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from dsts_pipeline.base.errors import StoreError


class WrongContent(Exception):
    """What arrived is not what was expected; the message tells in which way."""


class Sink:
    """Takes a download: writes it, and compares its length and digest with what is expected.

    It looks like a binary file to those who write into it.
    """

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file, self._expected = file, num_bytes
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def write(self, block: bytes) -> int:
        """Take the next block.

        Raises:
            WrongContent: more bytes than expected.
        """
        if self._num_bytes + len(block) > self._expected:
            raise WrongContent(f"has more than the {self._expected} bytes that the manifest says")
        try:
            self._file.write(block)
        except OSError as error:
            raise cannot_write(Path(self._file.name).parent, error) from None
        self._digest.update(block)
        self._num_bytes += len(block)
        return len(block)

    def restart(self) -> None:
        """Forget what was taken, for another attempt."""
        self._file.seek(0)
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def check(self, sha256: str) -> None:
        """Raise WrongContent unless exactly the expected bytes have come."""
        if self._num_bytes != self._expected:
            raise WrongContent(f"ended after {self._num_bytes} of {self._expected} bytes")
        if self._digest.hexdigest() != sha256:
            raise WrongContent("is damaged (sha256 does not hold)")

    def read(self, size: int = -1) -> bytes:
        """Nothing can be read back."""
        raise NotImplementedError

    def tell(self) -> int:
        """Bytes taken so far."""
        return self._num_bytes

    def close(self) -> None:
        """The cache closes its file itself."""


def cannot_write(folder: Path, error: OSError) -> StoreError:
    """The error for a folder of downloads that takes no more."""
    return StoreError(
        f"{folder}: can't keep downloaded shards here ({error.strerror or error}); free space, or "
        "set feed.cache_dir to a folder that can be written to"
    )
