"""The shards of a store: chunks into a file, and back into the memory of a batch.

One file is a zarr v3 `sharding_indexed` chunk (more in docs/store-format.md):

    chunk | crc32c   one pair per stored map, without gaps, in the order of the clips
    nameplate        ASCII "<fingerprint>:<array>:<shard number, 8 digits>"; zarr readers skip it
    index | crc32c   (offset, length) per slot, uint64 little endian; both 2**64 - 1: no map

`ShardStream` writes one, `read_index` and `read_chunks` read from one, and `ShardSource` reads maps
at any positions of a store from all of them, in threads.

Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.files import StoreFiles, list_shard_files
from dsts_pipeline.feature_store.manifest import REPAIR

CRC_BYTES = 4
ABSENT = 2**64 - 1
_RUN_CHUNKS = 256  # Two buffers each, and the system takes 1,024 a call.
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


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
        self._file = file
        self._digest = hashlib.sha256()
        self._offset = 0
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


# ---- zstd: the zarr v3 codec, without its checksum ---------------------------------------------
#
# Choice: numcodecs, because zarr-python needs it anyway; it releases the interpreter's lock.
# The frame's bytes may differ between versions of the zstd library (the maps never do), so a store
# that is repaired after an update may hold other bytes than before; its manifest then says so.
#
# Source: https://datatracker.ietf.org/doc/html/rfc8878#section-3.1.1


def compress_zstd(content: np.ndarray, level: int) -> bytes:
    """A zstd frame of contiguous bytes (uint8 `[n]`)."""
    return Zstd(level=level).encode(content)


def decompress_zstd(frame: bytes | memoryview, target: np.ndarray) -> None:
    """Unpack a frame into `target`, contiguous and of exactly the content's size.

    Raises:
        ValueError: no zstd frame, a damaged one, or one of another size.
    """
    content = target.reshape(-1).view(np.uint8)
    found = _content_bytes(bytes(frame[:18]))
    if found != content.nbytes:
        raise ValueError(f"a zstd frame of {found} bytes, not {content.nbytes}")
    try:
        Zstd().decode(frame, out=content)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"a damaged zstd frame ({error})") from None


def largest_frame_bytes(num_bytes: int) -> int:
    """Upper bound of a frame's size (ZSTD_compressBound)."""
    small = ((128 * 1024) - num_bytes) >> 11 if num_bytes < 128 * 1024 else 0
    return num_bytes + (num_bytes >> 8) + small


def _content_bytes(header: bytes) -> int | None:
    """Size of the content, as the frame's header states it; None where it does not."""
    if len(header) < 6 or not header.startswith(_ZSTD_MAGIC):
        return None
    descriptor = header[4]
    is_single_segment = bool(descriptor & 0x20)
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if size == 0:
        return None
    return int.from_bytes(header[start : start + size], "little") + (256 if size == 2 else 0)


# ---- from one file into the caller's memory ----------------------------------------------------
#
# Bytes go from the file straight into the target, and are checksummed there while the processor's
# cache still holds them; chunks that lie one behind the other are read by one call.


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
    if checksum(encoded) != tail[-CRC_BYTES:]:
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
        part for target, tail in zip(targets, tails, strict=True) for part in (target.data, tail)
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


# ---- a bounded number of open files, kept open between reads -----------------------------------


@dataclass
class _Open:
    descriptor: int
    num_readers: int = 0


class Descriptors:
    """Opens files of a store on demand; `files.num_open` of them stay open, the latest used.

    Safe in threads: a file that is being read is never closed under its reader, and each thread
    may hold one more. Safe after a fork: only positioned reads are made, which processes can share.
    """

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

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
        descriptor = self._files.open_descriptor(name)  # May take long: a download.
        with self._lock:
            if entry := self._open.get(name):
                os.close(descriptor)
            else:
                entry = self._open[name] = _Open(descriptor)
            entry.num_readers += 1
            while len(self._open) > self._files.num_open:
                _, oldest = self._open.popitem(last=False)
                if oldest.num_readers == 0:
                    os.close(oldest.descriptor)
            return entry

    def __del__(self) -> None:
        for entry in self._open.values():
            os.close(entry.descriptor)


# ---- maps at any positions, from all shards of a store -----------------------------------------

_PORTION_BYTES = 2**21
_WORTH_A_THREAD = 2**18  # Bytes: waking a thread takes as long as reading so many.


class _Chunks(NamedTuple):
    """Chunks of one file and the memory (bytes, uint8) that each goes to."""

    name: str
    shard: int
    slots: list[int]
    targets: list[np.ndarray]


class ShardSource:
    """A `MapSource` over the shard files of a store.

    Positions are sorted by shard and slot, cut into portions, and the portions shared out among
    threads, whoever is free taking the next one.

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
        self.files = files
        self.verify_checksums = verify_checksums
        self.num_threads = num_threads
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
        """As in `MapSource`."""
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
            self._drain(left, action)
            return
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

    def _drain(self, left: deque[_Chunks], action: Callable[[_Chunks], None]) -> None:
        while True:
            try:
                chunks = left.popleft()
            except IndexError:
                return
            try:
                try:
                    action(chunks)
                except ShardDamage:
                    if not self.files.refetch(chunks.name):
                        raise
                    action(chunks)  # on a fresh copy of the file
            except (ShardDamage, OSError) as error:
                raise self._explain(chunks, error) from None

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
            shard = int(shards[chosen[0]])
            ours = slots[chosen].tolist()
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
