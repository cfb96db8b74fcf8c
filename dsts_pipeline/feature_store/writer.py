"""Writing a store: whole shards only, each by one process, the manifest last.

Enters: a plan, and the maps of one shard after the other. Leaves: a finished store.

Any process may be killed at any instant, several may write one store at once: the shards that
are complete stay, the others are written by whoever is left, and the finished store has the same
bytes as that of one undisturbed process.

Memory: the maps of one shard as they were handed in, being written, and a few times one encoded
map. The caller may gather the next shard meanwhile; handing it in waits for the one before.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import (
    HELD,
    format_bytes,
    fsync_directory,
    open_atomic,
    sign,
    write_atomic,
    write_json,
)
from dsts_pipeline.base.progress import Track, console, track
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.manifest import (
    build_manifest,
    drop_provenance,
    find_sidecar,
    load_manifest,
)
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.shards import (
    CRC_BYTES,
    ShardStream,
    checksum,
    compress_zstd,
    format_nameplate,
    largest_frame_bytes,
    little_endian_bytes,
)
from dsts_pipeline.feature_store.stored_types import (
    STORED_DTYPES,
    EncodedMap,
    UnstorableMap,
    encode_map,
    measure_quantization,
)

POLL_SECONDS = 0.5


class StoreWriter:
    """Writes the store of `plan` into `root / plan.fingerprint`; several processes may at once.

    Use as a context manager, or call `close()`. One thread uses a writer; encoding, compression,
    hashing and waiting for the disk happen on a second one, whose errors come out at the next
    call.

    Raises:
        StoreError: the directory can't be written.
    """

    def __init__(self, root: str | Path, plan: StorePlan) -> None:
        self.plan = plan
        self.path = Path(root) / plan.fingerprint
        self._writing: tuple[int, Future[dict[str, Any]]] | None = None
        self._thread = ThreadPoolExecutor(1, "store-writer")
        try:
            for name in (*layout.name_shard_files(0, plan.dtype), layout.name_sidecar(0)):
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            self._claims = ShardClaims(self.path, plan)
            self._files = self._write_metadata()
        except OSError as error:
            raise _explain(self.path, error) from error

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def close(self) -> None:
        """Let the shard in work be finished, and other processes have all others."""
        self._thread.shutdown(wait=True)
        self._claims.close()

    def _write_metadata(self) -> dict[str, dict[str, Any]]:
        """Write the small files that follow from the plan alone; their bytes and sha256."""
        documents = {
            layout.GROUP_NAME: layout.describe_group(self.plan.fingerprint),
            **self.plan.arrays,
            layout.CLIPS_NAME: self.plan.clip_table,
        }
        contents = {name: layout.encode_json(document) for name, document in documents.items()}
        if self.plan.frame_table is not None:
            chunk = little_endian_bytes(self.plan.frame_table)
            contents[layout.FRAMES_CHUNK_NAME] = chunk.tobytes() + checksum(chunk)
        return {name: _write_small(self.path / name, text) for name, text in contents.items()}

    @property
    def finished(self) -> bool:
        """Whether the store has a sound manifest. Shards are not looked at."""
        try:
            return load_manifest(self.path)["fingerprint"] == self.plan.fingerprint
        except StoreError:
            return False

    def shard_clips(self, shard: int) -> range:
        """Positions (in the plan's order) of the clips in shard number `shard`."""
        return self.plan.positions_of(shard)

    def pending_shards(self) -> list[int]:
        """Numbers of the shards not known to be complete: absent, unconfirmed or damaged ones.

        The first call reads every shard that is there, to compare its digest (about 1 GB/s).
        What other processes completed since is noticed when it is claimed.
        """
        self.flush()
        return self._claims.pending()

    def failures(self) -> list[dict[str, Any]]:
        """Clips without a map in the shards known to be complete, as the manifest will list them.

        The shard handed in last is not among those; no waiting, no file is read.
        """
        sidecars = self._claims.sidecars
        return [failure for shard in sorted(sidecars) for failure in sidecars[shard]["failures"]]

    def claims(self) -> Iterator[int]:
        """Shards for this process to write, one after the other, until the store is complete.

        Where other processes hold the last ones, this waits for them, and takes over those of a
        process that died. Write each before the next is asked for.
        """
        while (shard := self.claim()) is not None:
            yield shard

    def claim(self, *, wait: bool = True) -> int | None:
        """Lock the next pending shard for this process until it is written.

        Args:
            wait: where other processes hold all that is pending, wait for them; None then means
                that the store is complete. Otherwise None means that nothing is free just now:
                write what is claimed, and ask again.

        Raises:
            StoreError: of the shard handed in last.
            ValueError: `wait`, though nothing is free and claimed shards are not written yet: the
                other process may be waiting for those.
        """
        told = False
        while True:
            shard = self._claims.take_any()
            if shard is not None or not wait:
                return shard
            self.flush()
            if claimed := self._claims.claimed:
                raise ValueError(f"shards {sorted(claimed)} are claimed but not written")
            left = self._claims.pending()
            if not left:
                return None
            if not told:
                told = True
                console.print(f"waiting for {len(left)} shards that other processes write")
            time.sleep(POLL_SECONDS)

    def claim_shard(self, shard: int) -> bool:
        """Lock this very shard; False if it is complete, or another process holds it."""
        return self._claims.take(shard)

    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        """Hand in one whole shard; it appears atomically, and then counts as done.

        Waits until the shard handed in before is written. `flush` waits for this one.

        Args:
            shard: its number. It is claimed first if it was not.
            maps: `[n, C, T, H, W]`, a row for every position of `shard_clips(shard)`, failed ones
                included (their rows are ignored). Any float type; cast to the storage type. Not
                to be changed before the next call of this writer returns.
            failures: reason by position (in the plan's order) of clips that have no map.

        Raises:
            StoreError: another process writes this shard; or of the shard before this one: a map
                holds NaN or Inf, or overflows the storage type, or the disk is full.
            ValueError: the number or shape of maps, or a failed position, is not the shard's.
        """
        positions = self.shard_clips(shard)
        failures = dict(failures or {})
        expected = (len(positions), *self.plan.map_shape)
        if tuple(maps.shape) != expected:
            raise ValueError(f"shard {shard}: maps are {tuple(maps.shape)}, expected {expected}")
        if stray := set(failures) - set(positions):
            raise ValueError(f"shard {shard}: failures at {sorted(stray)}, not in {positions}")
        self.flush()
        if not self._claims.retake(shard):
            raise StoreError(f"{self.path}: another process is writing shard {shard}; wait for it")
        task = self._thread.submit(store_shard, self.path, self.plan, shard, maps, failures)
        self._writing = shard, task

    def flush(self) -> None:
        """Wait until what was handed in is on the disk.

        Raises:
            StoreError: it could not be written. The shard is pending again.
        """
        if self._writing is None:
            return
        shard, task = self._writing
        try:
            sidecar = task.result()
        except Exception as error:
            self._writing = None
            self._claims.release(shard, None)
            if isinstance(error, OSError):
                raise _explain(self.path / layout.name_shard(shard), error) from error
            raise
        self._writing = None
        self._claims.release(shard, sidecar)

    def finish(self, provenance: Mapping[str, Any]) -> Path:
        """Write the manifest and return its path.

        A sound manifest that describes the very same files is left as it is, its provenance
        included: nothing new was made. Where only the groups of clips are other ones, their file
        and the manifest are replaced, with a line about it; the maps and their provenance stay.

        Raises:
            StoreError: shards are pending.
        """
        self.flush()
        path = self.path / layout.MANIFEST_NAME
        try:
            with self._claims.finishing() as found:
                self._finish(path, found, provenance)
        except OSError as error:
            raise _explain(path, error) from error
        return path

    def _finish(
        self, path: Path, found: list[dict[str, Any] | None], provenance: Mapping[str, Any]
    ) -> None:
        sidecars = [sidecar for sidecar in found if sidecar is not None]
        if len(sidecars) < len(found):
            missing = [shard for shard, sidecar in enumerate(found) if sidecar is None]
            raise StoreError(
                f"{self.path}: shards {missing[:5]} of {len(found)} are not written; "
                "run `python cli.py extract`, which goes on from there"
            )
        files = self._files | self._write_groups()
        content = build_manifest(self.plan, files, sidecars, provenance)
        if self._claims.are_locked:  # Nobody writes now: what is left is of killed processes.
            for left_over in self.path.rglob(".*.tmp"):
                left_over.unlink(missing_ok=True)
        former = load_manifest(self.path) if self.finished else None
        if former is not None and former["files"] != files:
            told = former | {"files": files}
            if drop_provenance(told) == drop_provenance(content):
                content = sign(told)
                told_groups = "written anew" if layout.find_groups(files) else "taken away"
                console.print(
                    f"{self.path}: its clips' groups are other ones: {told_groups}; the maps stay",
                    soft_wrap=True,
                )
        if former is None or drop_provenance(former) != drop_provenance(content):
            write_json(path, content)
        for old in self.path.glob("groups-*.json"):
            if old.name not in files:
                old.unlink(missing_ok=True)

    def _write_groups(self) -> dict[str, dict[str, Any]]:
        """Write the file of groups, if there are any; its bytes and sha256 by its name.

        Beside the one that the manifest names, which is replaced afterwards: a process that is
        killed in between leaves a store that is whole.
        """
        if self.plan.group_table is None:
            return {}
        content = layout.encode_json(self.plan.group_table)
        name = layout.name_groups(content)
        return {name: _write_small(self.path / name, content)}


def _write_small(path: Path, content: bytes) -> dict[str, Any]:
    """Write a small file unless it is there; its bytes and sha256."""
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _explain(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: can't be written ({error.strerror or error}); free space or choose another "
        "store.root, then run `python cli.py extract`, which goes on from the finished shards"
    )


# ---- who writes which shard --------------------------------------------------------------------

_FINISH_BYTE = 2**40
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LONG_LOOK_BYTES = 4 * 2**30


class ShardClaims:
    """Which shards are complete, whose the others are, and which this process takes next.

    A claim is a POSIX record lock on one byte of one file, byte k for shard k. The kernel drops it
    when the process dies, decode processes do not inherit it, and on NFS it also holds between
    hosts. It is the process's: two writers of one process do not exclude each other, and closing
    any descriptor of the lock file in that process drops all of them.

    Where the file system has no locks a line says so once, and every claim is granted: shards are
    deterministic and appear by rename, so that two writers of one only waste time.

    Attributes:
        sidecars: by number, of shards known to be complete.
        claimed: numbers of shards that this process holds.
        are_locked: whether the file system has locks.
    """

    def __init__(self, store: Path, plan: StorePlan) -> None:
        self._store = store
        self._plan = plan
        self.sidecars: dict[int, dict[str, Any]] = {}
        self.claimed: set[int] = set()
        self.are_locked = True
        self._damaged: set[int] = set()
        self._looked = False
        self._descriptor = os.open(
            store / layout.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )

    def close(self) -> None:
        """Drop all claims."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def pending(self) -> list[int]:
        """Shards not known to be complete. The first call compares all digests that are there."""
        if not self._looked:
            self._look()
            self._looked = True
        return [shard for shard in range(self._plan.num_shards) if shard not in self.sidecars]

    def take_any(self) -> int | None:
        """Claim the first pending shard that is free; None if there is none."""
        others = [shard for shard in self.pending() if shard not in self.claimed]
        return next((shard for shard in others if self.take(shard)), None)

    def take(self, shard: int) -> bool:
        """Claim a shard, unless another process holds it or has completed it meanwhile."""
        if not self._lock(shard, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        if self._recheck(shard):
            self._unlock(shard)
            return False
        if self.are_locked:  # What lies there is of a process that was killed.
            files = layout.name_shard_files(shard, self._plan.dtype)
            for path in (self._store / name for name in (*files, layout.name_sidecar(shard))):
                for left_over in path.parent.glob(f".{path.name}.*.tmp"):
                    left_over.unlink(missing_ok=True)
        self.claimed.add(shard)
        return True

    def retake(self, shard: int) -> bool:
        """Claim a shard even if it is complete, to write it again; False if it is another's."""
        if shard not in self.claimed and not self._lock(shard, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        self.claimed.add(shard)
        self.sidecars.pop(shard, None)
        return True

    def release(self, shard: int, sidecar: dict[str, Any] | None) -> None:
        """Give a shard free, complete (with its sidecar) or not."""
        if sidecar is not None:
            self.sidecars[shard] = sidecar
            self._damaged.discard(shard)
        self.claimed.discard(shard)
        self._unlock(shard)

    @contextmanager
    def finishing(self) -> Iterator[list[dict[str, Any] | None]]:
        """Keep other processes from finishing this store, after waiting for one that does.

        Gives the sidecars of all shards as they are now, whoever wrote them; None: not complete.
        """
        self._lock(_FINISH_BYTE, fcntl.LOCK_EX)
        try:
            for shard in self.pending():
                self._recheck(shard)
            missing = set(self.pending())
            yield [
                None if shard in missing else self._find(shard, digests=False)
                for shard in range(self._plan.num_shards)
            ]
        finally:
            self._unlock(_FINISH_BYTE)

    def _lock(self, byte: int, operation: int) -> bool:
        if not self.are_locked:
            return True
        try:
            fcntl.lockf(self._descriptor, operation, 1, byte)
        except OSError as error:
            if error.errno in HELD:
                return False
            if error.errno not in _UNSUPPORTED:
                raise
            self.are_locked = False
            console.print(
                f"{self._store}: no locks here ({error.strerror}); run one `extract` at a time",
                soft_wrap=True,
            )
        return True

    def _unlock(self, byte: int) -> None:
        if self.are_locked and self._descriptor >= 0:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def _look(self) -> None:
        """Compare the digests of all shards that are there, with a bar if that takes long."""
        present = [
            shard
            for shard in range(self._plan.num_shards)
            if shard not in self.sidecars and (self._store / layout.name_sidecar(shard)).exists()
        ]
        num_bytes = len(present) * self._plan.samples_per_shard * self._plan.sample_bytes
        bar: AbstractContextManager[Track | None] = nullcontext()
        if num_bytes >= _LONG_LOOK_BYTES:
            bar = track("check shards that are there", len(present), "shards")
        with bar as progress:
            for shard in present:
                if (sidecar := self._find(shard, digests=True)) is None:
                    self._damaged.add(shard)
                else:
                    self.sidecars[shard] = sidecar
                if progress is not None:
                    progress.advance()

    def _recheck(self, shard: int) -> bool:
        """Whether a pending shard is complete by now. Its writer has just computed the digests,
        unless what lies there is what this process found damaged."""
        sidecar = self._find(shard, digests=shard in self._damaged)
        if sidecar is not None:
            self.sidecars[shard] = sidecar
            self._damaged.discard(shard)
        return sidecar is not None

    def _find(self, shard: int, *, digests: bool) -> dict[str, Any] | None:
        return find_sidecar(self._store, self._plan, shard, digests=digests)


# ---- one shard onto the disk -------------------------------------------------------------------


def store_shard(
    store: Path, plan: StorePlan, shard: int, maps: np.ndarray, failures: Mapping[int, str]
) -> dict[str, Any]:
    """Write a shard's files and then its sidecar, which is returned; each appears by rename.

    Holds no more than one encoded map at a time.

    Args:
        maps: `[n, C, T, H, W]` of any float type, a row per position of the shard.
        failures: reason by position of clips without a map; their rows are ignored.

    Raises:
        StoreError: a map can't be stored, where the plan does not say to list it as failed.
        OSError: the disk is full, or can't be written.
    """
    manifest = store / layout.MANIFEST_NAME
    if manifest.exists():  # The store is repaired: until that ends it is unfinished.
        manifest.unlink(missing_ok=True)
        fsync_directory(store)
    task = _Shard(plan, shard, failures)
    files = []
    for name in layout.name_shard_files(shard, plan.dtype):
        array = name.partition("/")[0]
        with open_atomic(store / name) as file:
            stream = ShardStream(file, plan.samples_per_shard)
            if array == "maps":
                task.write_maps(stream, maps)
            else:
                task.write_scales(stream)
            written = stream.finish(format_nameplate(plan.fingerprint, shard, array))
        files.append({"file": name} | written)
    sidecar = {"fingerprint": plan.fingerprint, "files": files} | task.summary
    write_json(store / layout.name_sidecar(shard), sidecar)
    return sidecar


class _Shard:
    """What becomes known of a shard's maps while they are encoded one after the other."""

    def __init__(self, plan: StorePlan, shard: int, failures: Mapping[int, str]) -> None:
        self._plan = plan
        self._positions = plan.positions_of(shard)
        self._failures = dict(failures)
        self._scales: dict[int, np.ndarray] = {}
        self._num_saturated: list[int] = []
        self._errors: list[dict[str, float]] = []

    def write_maps(self, stream: ShardStream, maps: np.ndarray) -> None:
        for slot, (position, source) in enumerate(zip(self._positions, maps, strict=True)):
            encoded = None if position in self._failures else self._encode(position, source)
            if encoded is None:
                continue
            content = little_endian_bytes(encoded.stored)
            is_zstd = self._plan.codec == "zstd"
            stream.append(
                slot, compress_zstd(content, self._plan.zstd_level) if is_zstd else content
            )
            if encoded.num_saturated:
                self._num_saturated.append(encoded.num_saturated)
            if encoded.scales is not None:
                self._scales[slot] = encoded.scales
                self._errors.append(measure_quantization(source, encoded))

    def write_scales(self, stream: ShardStream) -> None:
        for slot, scales in self._scales.items():
            stream.append(slot, little_endian_bytes(scales))

    def _encode(self, position: int, source: np.ndarray) -> EncodedMap | None:
        try:
            return encode_map(source, self._plan.dtype, self._plan.on_overflow)
        except UnstorableMap as problem:
            if self._plan.on_overflow == "fail":
                self._failures[position] = f"can't be stored: {problem}"
                return None
            cure = (
                "set store.dtype to bfloat16 or float32, or store.on_overflow to fail or saturate"
                if problem.overflows
                else "look at the video and the weights, or list such clips as failed with "
                "store.on_overflow = fail"
            )
            clip = self._plan.samples[position].id
            raise StoreError(f"clip {clip}: {problem}; {cure}") from None

    @property
    def summary(self) -> dict[str, Any]:
        """What a sidecar says beside the files."""
        samples = self._plan.samples
        failures = [
            {"position": int(position), "reason": str(self._failures[position])}
            | {"id": samples[position].id, "split": samples[position].split}
            for position in sorted(self._failures)
        ]
        errors = self._errors
        sums = {
            "error_squares": math.fsum(error["error_squares"] for error in errors),
            "value_squares": math.fsum(error["value_squares"] for error in errors),
            "largest_error": max((error["largest_error"] for error in errors), default=0.0),
        }
        return {
            "failures": failures,
            "saturated": {"values": sum(self._num_saturated), "clips": len(self._num_saturated)},
            "quantization": sums if self._plan.dtype == "int8" else None,
        }


# ---- how large a store will be, how much is there, and whether the rest fits on the disk -------

_SMALL_FILES_BYTES = 2**20


@dataclass(frozen=True)
class StoreSurvey:
    """A store before it is (further) written.

    Args:
        path: the store's directory, which need not exist.
        pending: numbers of the shards to be written.
        num_shards: how many there are in all.
        done_bytes: size of the shards that are there (their digests are not compared).
        pending_bytes: what the pending ones take: exactly, unless a clip fails; compressed ones
            take that much at most.
        margin_bytes: room beside it, for a shard that is written again beside its old file, and
            for the small files.
        free_bytes: free space of the file system for this user.
        is_compressed: whether `pending_bytes` is but an upper bound.
    """

    path: Path
    pending: tuple[int, ...]
    num_shards: int
    done_bytes: int
    pending_bytes: int
    margin_bytes: int
    free_bytes: int
    is_compressed: bool

    @property
    def total_bytes(self) -> int:
        """Size of all shards of the finished store."""
        return self.done_bytes + self.pending_bytes


def survey_store(root: str | Path, plan: StorePlan) -> StoreSurvey:
    """Look at what is there of the store of `plan` below `root`, by presence and sizes."""
    path = Path(root) / plan.fingerprint
    place = Path(os.path.abspath(path))
    folder = next(folder for folder in (place, *place.parents) if folder.is_dir())
    pending = []
    done_bytes = 0
    for shard in range(plan.num_shards):
        sidecar = find_sidecar(path, plan, shard, digests=False)
        if sidecar is None:
            pending.append(shard)
        else:
            done_bytes += sum(entry["bytes"] for entry in sidecar["files"])
    return StoreSurvey(
        path=path,
        pending=tuple(pending),
        num_shards=plan.num_shards,
        done_bytes=done_bytes,
        pending_bytes=sum(shard_bytes(plan, shard) for shard in pending),
        margin_bytes=shard_bytes(plan, 0) + _SMALL_FILES_BYTES if pending else 0,
        free_bytes=shutil.disk_usage(folder).free,
        is_compressed=plan.codec != "none",
    )


def shard_bytes(plan: StorePlan, shard: int) -> int:
    """Size of a shard's files if no clip fails; with zstd an upper bound."""
    num_maps = len(plan.positions_of(shard))
    map_bytes = plan.sample_bytes
    if plan.codec == "zstd":
        map_bytes = largest_frame_bytes(map_bytes)
    sizes = {"maps": map_bytes}
    if plan.dtype == "int8":
        sizes["scales"] = 4 * plan.map_shape[0]
    return sum(
        num_maps * (size + CRC_BYTES)
        + len(format_nameplate(plan.fingerprint, shard, array))
        + 16 * plan.samples_per_shard
        + CRC_BYTES
        for array, size in sizes.items()
    )


def store_bytes(plan: StorePlan, map_shape: Sequence[int], dtype: str) -> int:
    """Size of a store of the same maps in another shape and type, if no clip fails.

    Without the small files; with zstd an upper bound.
    """
    map_bytes = math.prod(map_shape) * STORED_DTYPES[dtype].itemsize
    if plan.codec == "zstd":
        map_bytes = largest_frame_bytes(map_bytes)
    scale_bytes = 4 * map_shape[0] if dtype == "int8" else 0
    # Of each map a checksum and a place in its shard's index, of the scales as well.
    return plan.num_clips * (map_bytes + scale_bytes + (CRC_BYTES + 16) * (2 if scale_bytes else 1))


def require_space(survey: StoreSurvey) -> None:
    """Stop before the start if the store can't fit; with zstd, whose gain is unknown, warn only.

    Quotas of a user or a folder are not seen.

    Raises:
        StoreError: what is pending takes more than is free.
    """
    needed = survey.pending_bytes + survey.margin_bytes
    if needed <= survey.free_bytes:
        return
    text = (
        f"{survey.path}: {format_bytes(needed)} are needed for {len(survey.pending)} shards, "
        f"{format_bytes(survey.free_bytes)} are free"
    )
    if survey.is_compressed:
        console.print(f"{text}; it may fit nevertheless, as they are compressed", soft_wrap=True)
        return
    raise StoreError(
        f"{text}; free space, choose another store.root, or a smaller store.dtype or "
        "store.codec = zstd"
    )
