"""One shard file: maps in, bytes out, and back. The zarr v3 `sharding_indexed` codec.

    chunk | crc32c   one pair per stored map, without gaps, in the order of the clips
    nameplate        ASCII "<fingerprint>:<array>:<shard number, 8 digits>"; zarr readers skip it
    index | crc32c   (offset, length) per slot, uint64 little endian; both 2**64 - 1: no map

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np


CRC_BYTES = 4
ABSENT = 2**64 - 1


class ShardDamage(Exception):
    """A shard's bytes do not say what they should; the message tells in which way."""


def format_nameplate(fingerprint: str, shard: int, array: str = "maps") -> bytes:
    """The bytes that tell a shard from its neighbours and from those of other arrays and stores."""
    return f"{fingerprint}:{array}:{shard:08d}".encode()


def encode_shard(maps: Sequence[np.ndarray | None], num_slots: int, nameplate: bytes) -> bytes:
    """Bytes of a shard file.

    Args:
        maps: one array per slot, already in the storage type; None where there is no map. May be
            shorter than `num_slots` (last shard of a store).
        num_slots: slots of the index, filled or not.
        nameplate: see `format_nameplate`.
    """
    index = np.full((num_slots, 2), ABSENT, dtype="<u8")
    pieces: list[bytes | memoryview] = []
    offset = 0
    for slot, stored in enumerate(maps):
        if stored is None:
            continue
        little_endian = stored.astype(stored.dtype.newbyteorder("<"), order="C", copy=False)
        chunk = little_endian.reshape(-1).view(np.uint8)
        pieces += [chunk.data, _checksum(chunk)]
        index[slot] = offset, chunk.nbytes + CRC_BYTES
        offset += chunk.nbytes + CRC_BYTES
    encoded_index = index.tobytes()
    return b"".join([*pieces, nameplate, encoded_index, _checksum(encoded_index)])


def _checksum(content: bytes | np.ndarray) -> bytes:
    return struct.pack("<I", google_crc32c.value(content))


def read_index(path: str | Path, num_slots: int, nameplate: bytes) -> np.ndarray:
    """Offsets and lengths `[num_slots, 2]` (uint64) of a shard's chunks, checked.

    Raises:
        ShardDamage: missing or truncated file, wrong checksum, another shard's nameplate.
    """
    index_bytes = num_slots * 16
    tail_bytes = len(nameplate) + index_bytes + CRC_BYTES
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - tail_bytes))
            tail = file.read(tail_bytes)
    except FileNotFoundError:
        raise ShardDamage("is missing") from None
    if len(tail) < tail_bytes:
        raise ShardDamage(f"is truncated to {size} bytes")
    encoded = tail[len(nameplate) : len(nameplate) + index_bytes]
    if _checksum(encoded) != tail[-CRC_BYTES:]:
        raise ShardDamage("has a damaged index (crc32c does not hold)")
    if not tail.startswith(nameplate):
        raise ShardDamage(f"is not {nameplate.decode()} but another shard")
    return np.frombuffer(encoded, dtype="<u8").reshape(num_slots, 2).astype(np.uint64)


def read_chunks(
    path: str | Path, index: np.ndarray, slots: Sequence[int], targets: Sequence[np.ndarray]
) -> None:
    """Fill each of `targets` with the map in the slot of the same rank, checksums verified.

    The bytes go from the file straight into the targets (contiguous, in the storage type): one
    positioned read a map, no copy. Safe in threads and in forked or spawned processes, since no
    file stays open.

    Raises:
        ShardDamage: naming the slot, where a chunk is absent, cut off or its crc32c fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise ShardDamage("is missing") from None
    stored_crc = bytearray(CRC_BYTES)
    try:
        for slot, target in zip(slots, targets, strict=True):
            content = target.reshape(-1).view(np.uint8)
            offset, length = (int(value) for value in index[slot])
            if (offset, length) == (ABSENT, ABSENT):
                raise ShardDamage(f"holds no map in slot {slot}")
            if length != content.nbytes + CRC_BYTES:
                raise ShardDamage(f"has {length} bytes in slot {slot}, not {content.nbytes + 4}")
            if os.preadv(descriptor, [content.data, stored_crc], offset) != length:
                raise ShardDamage(f"is cut off in slot {slot}")
            if _checksum(content) != stored_crc:
                raise ShardDamage(f"has a damaged map in slot {slot} (crc32c does not hold)")
    finally:
        os.close(descriptor)
