"""One shard file: maps in, bytes out (back: `chunks.py`). The zarr v3 `sharding_indexed` codec.

    chunk | crc32c   one pair per stored map, without gaps, in the order of the clips
    nameplate        ASCII "<fingerprint>:<array>:<shard number, 8 digits>"; zarr readers skip it
    index | crc32c   (offset, length) per slot, uint64 little endian; both 2**64 - 1: no map

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import hashlib
import struct
from typing import IO, Any

import google_crc32c
import numpy as np

CRC_BYTES = 4
ABSENT = 2**64 - 1


class ShardDamage(Exception):
    """A shard's bytes do not say what they should; the message tells in which way."""


def format_nameplate(fingerprint: str, shard: int, array: str = "maps") -> bytes:
    """The bytes that tell a shard from its neighbours and from those of other arrays and stores."""
    return f"{fingerprint}:{array}:{shard:08d}".encode()


class ShardStream:
    """Writes a shard chunk after chunk, holding no more of it than its index.

    Args:
        file: where it goes, positioned at 0.
        num_slots: slots of the index, filled or not.
    """

    def __init__(self, file: IO[bytes], num_slots: int) -> None:
        self._file, self._digest, self._offset = file, hashlib.sha256(), 0
        self._index = np.full((num_slots, 2), ABSENT, dtype="<u8")

    def append(self, slot: int, chunk: np.ndarray | bytes) -> None:
        """Write a chunk's encoded bytes (uint8 `[n]`) and their checksum as the one in `slot`."""
        content = memoryview(chunk)  # type: ignore[arg-type]
        self._index[slot] = self._offset, content.nbytes + CRC_BYTES
        self._write(content)
        self._write(checksum(chunk))

    def finish(self, nameplate: bytes) -> dict[str, Any]:
        """Write what closes the shard; its `{"bytes", "sha256"}`."""
        encoded_index = self._index.tobytes()
        self._write(nameplate + encoded_index + checksum(encoded_index))
        return {"bytes": self._offset, "sha256": self._digest.hexdigest()}

    def _write(self, content: memoryview | bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._offset += len(content)


def little_endian_bytes(stored: np.ndarray) -> np.ndarray:
    """An array's bytes (uint8 `[n]`), C order: zarr's `bytes` codec. No copy on most machines."""
    ordered = stored.astype(stored.dtype.newbyteorder("<"), order="C", copy=False)
    return ordered.reshape(-1).view(np.uint8)


def checksum(content: bytes | np.ndarray) -> bytes:
    """crc32c of `content`, as it is stored."""
    return struct.pack("<I", google_crc32c.value(content))
