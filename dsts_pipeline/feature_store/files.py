"""A store's files: where they lie, and whether they are what the manifest says.

Enters: a directory (or, in `remote.py`, a URL) and a manifest. Leaves: bytes, sizes and descriptors
by name, and a `FileProblem` for every file that is missing or damaged. Names use "/", as in
docs/store-format.md. What the maps in the files say, `verify.py` checks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.manifest import REPAIR, count_clips

_NUM_NAMED = 5  # problems in one message
_MISSING = "is missing"
_DAMAGED = "is damaged (sha256 does not hold)"


class StoreFiles(Protocol):
    """The files of one store, read only. Can be pickled, and used in threads and after a fork.

    A reader needs no more of a file system, so stores on a disk and behind a URL are read alike.
    """

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
    """The `StoreFiles` of a store in the directory `path`."""

    num_open = 64

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.location = str(path)

    def read_bytes(self, name: str) -> bytes:
        """As in `StoreFiles`."""
        return (self.path / name).read_bytes()

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """As in `StoreFiles`; lists each folder once."""
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
        """As in `StoreFiles`."""
        return os.open(self.path / name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def refetch(self, name: str) -> bool:
        """No: it is the only copy."""
        return False


# ---- what a manifest vouches for ---------------------------------------------------------------


@dataclass(frozen=True)
class FileProblem:
    """A file that is not as recorded, or a map in it that is not sound.

    Attributes:
        file: its name inside the store. problem: what is wrong, a phrase that follows the name.
        shard: the shard that it belongs to; None for the small files.
        clip: the clip whose map is concerned, where it is one map.
    """

    file: str
    problem: str
    shard: int | None = None
    clip: str | None = None

    def __str__(self) -> str:
        return f"{_name_file(self.file, self.shard)} {self.problem}"


def _name_file(file: str, shard: int | None) -> str:
    return f"file {file}" if shard is None else f"shard {shard} ({file})"


def list_shard_files(manifest: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """`(shard number, {"file", "bytes", "sha256"})` of every file of every shard."""
    for number, entry in enumerate(manifest["shards"]):
        for file in entry["files"] if "files" in entry else [entry]:
            yield number, file


def list_files(manifest: Mapping[str, Any]) -> list[tuple[int | None, str, Mapping[str, Any]]]:
    """`(shard or None, name, {"bytes", "sha256"})` of every file, the small ones first."""
    small = [(None, name, entry) for name, entry in manifest["files"].items()]
    return [*small, *((shard, entry["file"], entry) for shard, entry in list_shard_files(manifest))]


def list_some(problems: Sequence[Any]) -> str:
    """The first few of `problems` in one line, and how many more there are."""
    more = f" and {len(problems) - _NUM_NAMED} more" if len(problems) > _NUM_NAMED else ""
    return "; ".join(map(str, problems[:_NUM_NAMED])) + more


# ---- the quick check, each time a store is opened ----------------------------------------------


def require_presence(files: StoreFiles, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """Check that all files are there, and return the contents of the small ones.

    Every zarr reader takes a missing shard for fill values, silently. So presence and size of
    every shard, and the digests of the small files, are compared with the manifest.

    Raises:
        StoreError: naming the files that are missing or of the wrong size or digest.
    """
    small: dict[str, bytes] = {}
    damage: list[FileProblem] = []
    for name, expected in manifest["files"].items():
        try:
            small[name] = files.read_bytes(name)
        except FileNotFoundError:
            damage.append(FileProblem(name, _MISSING))
            continue
        if hashlib.sha256(small[name]).hexdigest() != expected["sha256"]:
            damage.append(FileProblem(name, _DAMAGED))
    shards = list(list_shard_files(manifest))
    sizes = files.sizes([entry["file"] for _, entry in shards])
    for number, entry in shards:
        if problem := _compare_size(sizes, entry["file"], entry["bytes"]):
            damage.append(FileProblem(entry["file"], problem, number))
    if damage:
        raise StoreError(f"{files.location}: {list_some(damage)}; {REPAIR}")
    return small


def _compare_size(sizes: Mapping[str, int], name: str, num_bytes: int) -> str | None:
    if name not in sizes:
        return _MISSING
    return None if sizes[name] == num_bytes else f"has {sizes[name]} bytes, not {num_bytes}"


# ---- the full check ----------------------------------------------------------------------------


def check_files(
    files: StoreFiles, manifest: Mapping[str, Any], *, digests: bool
) -> Iterator[tuple[str, FileProblem | None]]:
    """Check every file, in the manifest's order: which one, in words, and what is wrong.

    Args:
        digests: compare sha256 too (reads everything); else presence and size of shards, and
            digests of the small files only.
    """
    listed = list_files(manifest)
    sizes = files.sizes([name for _, name, _ in listed])
    for shard, name, expected in listed:
        problem = _compare_size(sizes, name, expected["bytes"])
        if problem is None and (digests or shard is None):
            problem = _compare_digest(files, name, expected["sha256"])
        yield _name_file(name, shard), FileProblem(name, problem, shard) if problem else None


def _compare_digest(files: StoreFiles, name: str, expected: str) -> str | None:
    try:
        descriptor = files.open_descriptor(name)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return _MISSING
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    return None if found == expected else _DAMAGED


def find_damage(
    store: str | Path, manifest: Mapping[str, Any], *, digests: bool
) -> Iterator[tuple[str, str | None]]:
    """`check_files` for a store on a disk, yielding `(what, problem or None)` in words."""
    for what, found in check_files(LocalFiles(store), manifest, digests=digests):
        yield what, found.problem if found else None


def check_sidecars(store: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Sidecars that are missing or say something else than the manifest: for each a sentence.

    Readers need no sidecar. A writer trusts no shard without one, and would write it again.
    """
    strange = []
    for shard, entry in enumerate(manifest["shards"]):
        name = layout.name_sidecar(shard)
        try:
            sidecar = read_json(store / name)
            same = sidecar["fingerprint"] == manifest["fingerprint"]
            sound = same and sidecar["files"] == entry["files"]
        except Exception:  # Whatever it holds instead: it is not this shard's sidecar.
            sound = False
        if not sound:
            strange.append(f"file {name} is missing or damaged; a repair writes its shard again")
    return strange


def check_totals(store: Path, manifest: Mapping[str, Any]) -> FileProblem | None:
    """A manifest whose failures or counts are not those of its shards' sidecars, if it is one.

    Its own digest can't tell: somebody may have renewed it. Sidecars that can't be read are told
    by `check_sidecars`.
    """
    try:
        sidecars = [
            read_json(store / layout.name_sidecar(shard))
            for shard in range(len(manifest["shards"]))
        ]
        failures = [failure for sidecar in sidecars for failure in sidecar["failures"]]
    except Exception:
        return None
    counts = manifest["counts"]
    planned = {split: found["planned"] for split, found in counts["splits"].items()}
    same = manifest["failures"] == failures and counts == count_clips(planned, failures)
    if same and counts["planned"] == manifest["array"]["shape"][0]:
        return None
    return FileProblem(
        layout.MANIFEST_NAME, "tells other failures or counts than the shards' sidecars"
    )
