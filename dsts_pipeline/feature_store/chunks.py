"""Maps out of one shard file: an open descriptor and slots in, maps in the caller's memory out.

The file's layout is in `shards.py`, the format's specification in docs/store-format.md. Bytes go
from the file straight into the target, and are checksummed there while the processor's cache
still holds them; chunks that lie one behind the other are read by one call.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np

from dsts_pipeline.feature_store.codecs import decompress_zstd
from dsts_pipeline.feature_store.shards import ABSENT, CRC_BYTES, ShardDamage

_RUN_CHUNKS = 256  # Two buffers each, and the system takes 1,024 a call.


def read_index(
    descriptor: int, num_bytes: int, num_slots: int, nameplate: bytes
) -> list[tuple[int, int]]:
    """Offset and length of the chunk in each slot of a shard, checked.

    Args:
        num_bytes: size that the file must have.

    Raises:
        ShardDamage: a truncated file, a wrong checksum, another shard's nameplate.
    """
    found = os.fstat(descriptor).st_size
    if found != num_bytes:
        raise ShardDamage(f"has {found} bytes, not {num_bytes}")
    index_bytes = num_slots * 16
    tail_bytes = len(nameplate) + index_bytes + CRC_BYTES
    tail = os.pread(descriptor, tail_bytes, max(0, num_bytes - tail_bytes))
    if len(tail) < tail_bytes:
        raise ShardDamage(f"is truncated to {num_bytes} bytes")
    encoded = tail[len(nameplate) : len(nameplate) + index_bytes]
    if struct.pack("<I", google_crc32c.value(encoded)) != tail[-CRC_BYTES:]:
        raise ShardDamage("has a damaged index (crc32c does not hold)")
    if not tail.startswith(nameplate):
        raise ShardDamage(f"is not {nameplate.decode()} but another shard")
    return list(struct.iter_unpack("<QQ", encoded))


def read_chunks(
    descriptor: int,
    index: Sequence[tuple[int, int]],
    slots: Sequence[int],
    targets: Sequence[np.ndarray],
    *,
    verify: bool,
    zstd: bool,
) -> None:
    """Fill each of `targets` (bytes of a map, uint8) from the slot of the same rank.

    Args:
        slots: ascending, the file's order.
        verify: check each chunk's crc32c.
        zstd: the chunks are compressed.

    Raises:
        ShardDamage: naming the slot, where a chunk is absent, cut off or its checksum fails.
    """
    for slot, target in zip(slots, targets, strict=True):
        offset, length = index[slot]
        if (offset, length) == (ABSENT, ABSENT):
            raise ShardDamage(f"holds no map in slot {slot}")
        if not zstd and length != target.nbytes + CRC_BYTES:
            raise ShardDamage(f"has {length} bytes in slot {slot}, not {target.nbytes + CRC_BYTES}")
    read = _read_compressed if zstd else _read_plain
    for run in _split_runs(index, slots):
        read(descriptor, index, slots[run], targets[run], verify)


def _split_runs(index: Sequence[tuple[int, int]], slots: Sequence[int]) -> Iterator[slice]:
    """Cut `slots` into runs whose chunks lie one behind the other in the file."""
    start = 0
    for stop in range(1, len(slots)):
        offset, length = index[slots[stop - 1]]
        is_behind = offset + length == index[slots[stop]][0]
        if not (is_behind and stop - start < _RUN_CHUNKS):
            yield slice(start, stop)
            start = stop
    if len(slots):
        yield slice(start, len(slots))


def _read_plain(
    descriptor: int,
    index: Sequence[tuple[int, int]],
    slots: Sequence[int],
    targets: Sequence[np.ndarray],
    verify: bool,
) -> None:
    checksums = bytearray(CRC_BYTES * len(slots))
    tails = [
        memoryview(checksums)[at : at + CRC_BYTES] for at in range(0, len(checksums), CRC_BYTES)
    ]
    buffers = [
        part for pair in zip(targets, tails, strict=True) for part in (pair[0].data, pair[1])
    ]
    num_bytes = sum(index[slot][1] for slot in slots)
    if os.preadv(descriptor, buffers, index[slots[0]][0]) != num_bytes:
        raise ShardDamage(f"is cut off in slots {slots[0]} to {slots[-1]}")
    if verify:
        for slot, target, tail in zip(slots, targets, tails, strict=True):
            _compare(target, tail, slot)


def _read_compressed(
    descriptor: int,
    index: Sequence[tuple[int, int]],
    slots: Sequence[int],
    targets: Sequence[np.ndarray],
    verify: bool,
) -> None:
    start = index[slots[0]][0]
    content = np.empty(sum(index[slot][1] for slot in slots), dtype=np.uint8)
    if os.preadv(descriptor, [content.data], start) != content.nbytes:
        raise ShardDamage(f"is cut off in slots {slots[0]} to {slots[-1]}")
    for slot, target in zip(slots, targets, strict=True):
        offset, length = index[slot]
        frame = content[offset - start : offset - start + length - CRC_BYTES]
        if verify:
            tail = offset - start + frame.nbytes
            _compare(frame, content[tail : tail + CRC_BYTES], slot)
        try:
            decompress_zstd(frame.data, target)
        except ValueError as error:
            raise ShardDamage(f"has {error} in slot {slot}") from None


def _compare(content: np.ndarray, stored: memoryview | np.ndarray, slot: int) -> None:
    if google_crc32c.value(content) != int.from_bytes(stored, "little"):
        raise ShardDamage(f"has a damaged map in slot {slot} (crc32c does not hold)")
