"""A store (or a split of it) in one HDF5 file, read through the same `FeatureStore`.

    maps        [n, C, T, H, W], one chunk a map, fletcher32; bfloat16 as its bits (uint16), with
                the attribute stored_type
    scales      float32 [n, C], for int8 only: map = stored * scale of its channel
    labels, views, positions      int64 [n]; positions: places in the store's planned order
    ids, splits, class_names      UTF-8 text of fixed length
    frames      int32 [n, F], where the store has them
    manifest, clips               JSON as bytes (an attribute holds 64 KiB at most), for our reader
    attributes of the file        format, version, fingerprint, split, stored_type

Data of this file alone are read: HDF5 can also show the content of other files of this machine, by
external links, raw data kept elsewhere and virtual datasets; see `list_datasets`.

All datasets have fletcher32, and the file's structure has HDF5 1.10's own checksums. What is not
there can't be read as zeros: the number of chunks is compared on opening.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import sign
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.stored_types import STORED_DTYPES

FORMAT_NAME = "dsts-feature-file"
FORMAT_VERSION = 1
# What h5py makes of damage, depending on where it lies.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
_MAX_SOFT_LINKS = 16  # that lead to one another; HDF5's own number
CURE = "export or copy the file again"
_SMALL = ("labels", "views", "positions", "ids", "splits", "class_names", "manifest", "clips")


@dataclass(frozen=True)
class Hdf5Content:
    """An opened file: what a `FeatureStore` is made of."""

    manifest: dict[str, Any]
    table: dict[str, Any]
    source: Hdf5Source
    frames: np.ndarray | None


def read_hdf5(path: str | Path) -> Hdf5Content:
    """Open a file that `export_hdf5` wrote.

    Raises:
        StoreError: not such a file, of another version, incomplete or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: no such file; make it with `python cli.py export`")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            for name, reason in list_datasets(file).outside.items():
                raise StoreError(f"{path}: {name} {reason}, which no export writes; {CURE}")
            manifest, table = _load_small(file, path)
            frames = file["frames"][()] if "frames" in file else None
            _require_maps(file, path, manifest)
    except _HDF5_ERRORS as error:
        raise StoreError(f"{path}: not a sound HDF5 file ({error}); {CURE}") from None
    failed = {failure["position"] for failure in manifest["failures"]}
    rows = np.full(manifest["array"]["shape"][0], -1, dtype=np.int64)
    kept = [place for place in range(len(rows)) if place not in failed]
    rows[kept] = np.arange(len(kept))
    spread = None
    if frames is not None:
        spread = np.full((len(rows), frames.shape[1]), -1, dtype=np.int32)
        spread[kept] = frames
    return Hdf5Content(manifest, table, Hdf5Source(path, rows), spread)


@dataclass(frozen=True)
class Datasets:
    """What an HDF5 file holds, by name.

    Attributes:
        inside: Datasets whose data lie in the file.
        outside: What would make HDF5 read other files, with the words that say how.
    """

    inside: dict[str, h5py.Dataset]
    outside: dict[str, str]


def list_datasets(file: h5py.File) -> Datasets:
    """All datasets of `file`, once by each link that is not inside of a linked group.

    Source: https://docs.hdfgroup.org (External Storage, Virtual Dataset, Links)
    """
    found, seen = Datasets({}, {}), set[int]()
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    while groups:
        prefix, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue  # a group may contain itself
        seen.add(address)
        for name in group:
            item = _resolve(group, name)
            if isinstance(item, str):
                found.outside[prefix + name] = item
            elif isinstance(item, h5py.Dataset):
                found.inside[prefix + name] = item
            elif isinstance(item, h5py.Group):
                is_hard = isinstance(group.get(name, getlink=True), h5py.HardLink)
                groups += [(f"{prefix}{name}/", item)] if is_hard else []
    return found


def find_dataset(file: h5py.File, name: str) -> h5py.Dataset | str | None:
    """The dataset of that name; how it leads out of the file; None: there is none."""
    found = _resolve(file, name)
    return None if isinstance(found, h5py.Group | h5py.Datatype) else found


_Item: TypeAlias = h5py.Group | h5py.Dataset | h5py.Datatype


def _resolve(group: h5py.Group, path: str, num_links: int = 0) -> _Item | str | None:
    """What `path` names from `group` on, as in `find_dataset`.

    Links are followed one by one instead of by HDF5, which opens the files of external ones.
    """
    place: _Item = group.file if path.startswith("/") else group
    for name in path.split("/"):
        if name in ("", "."):
            continue
        if not isinstance(place, h5py.Group):
            return None
        try:
            link = place.get(name, getlink=True)
        except TypeError:  # of a kind that a program registers for itself
            return "is a link of an unknown kind"
        if isinstance(link, h5py.ExternalLink):
            return f"is a link to another file ({link.filename})"
        if isinstance(link, h5py.HardLink):
            place = place[name]
        elif isinstance(link, h5py.SoftLink) and num_links < _MAX_SOFT_LINKS:
            target = _resolve(place, link.path, num_links + 1)
            if target is None or isinstance(target, str):
                return target
            place = target
        else:
            return None
    if isinstance(place, h5py.Dataset):
        if place.is_virtual:
            return "is a virtual dataset, which shows data of other files"
        if place.external:
            return f"keeps its data in another file ({place.external[0][0]})"
    return place


def _load_small(file: h5py.File, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = file.attrs.get("format"), int(file.attrs.get("version", 0))
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise StoreError(
            f"{path}: format is {found[0]} version {found[1]}, expected {FORMAT_NAME} version "
            f"{FORMAT_VERSION}; bring in other files with `python cli.py import-features`"
        )
    if missing := [name for name in (*_SMALL, "maps") if name not in file]:
        raise StoreError(f"{path}: has no dataset {missing[0]}; {CURE}")
    manifest = json.loads(file["manifest"][()].tobytes())
    encoded = file["clips"][()].tobytes()
    digest = hashlib.sha256(encoded).hexdigest()
    if sign(manifest) != manifest or manifest["files"][layout.CLIPS_NAME]["sha256"] != digest:
        raise StoreError(f"{path}: damaged, its manifest's digest does not hold; {CURE}")
    return manifest, json.loads(encoded)


def _require_maps(file: h5py.File, path: Path, manifest: Mapping[str, Any]) -> None:
    shape = (manifest["counts"]["stored"], *manifest["array"]["shape"][1:])
    maps, dtype = file["maps"], STORED_DTYPES[manifest["array"]["stored_type"]]
    wanted = {"maps": maps} | ({"scales": file["scales"]} if dtype == np.int8 else {})
    if maps.shape != shape or maps.dtype != dtype:
        raise StoreError(
            f"{path}: its maps are {maps.dtype} {maps.shape}, expected {dtype} {shape}; {CURE}"
        )
    for name, dataset in wanted.items():
        if (stored := dataset.id.get_num_chunks()) != len(maps):
            raise StoreError(f"{path}: {stored} of {len(maps)} chunks of {name} exist; {CURE}")


class Hdf5Source:
    """A `MapSource` over an exported file.

    The file is opened once per process: a forked child closes what it inherited and opens it
    anew, a spawned one gets the path alone. Threads take turns, since HDF5 has one lock.

    Args:
        path: the file. rows: its row of each position, int64 `[planned]`, -1 where there is none.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self.path, self._rows = path, rows
        self._file: h5py.File | None = None
        self._process = -1

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": None, "_process": -1}

    def _open(self) -> h5py.File:
        if self._process != os.getpid():
            if self._file is not None:
                self._file.close()
            self._file = h5py.File(self.path, "r", locking="best-effort")
            self._process = os.getpid()
        assert self._file is not None
        return self._file

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """See `MapSource`. Rows that follow one another are read together."""
        rows = self._rows[positions]
        if len(rows) and rows.min() < 0:
            raise StoreError(f"{self.path}: no map at position {positions[rows.argmin()]}")
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
            source = slice(int(rows[first]), int(rows[first]) + int(last - first))
            self._read_block("maps", source, out[first:last])
            if scales is not None:
                self._read_block("scales", source, scales[first:last])

    def _read_block(self, name: str, source: slice, target: np.ndarray) -> None:
        try:
            self._open()[name].read_direct(target, np.s_[source])
        except _HDF5_ERRORS as error:
            where = f"rows {source.start} to {source.stop - 1}"
            raise StoreError(
                f"{self.path}: {name} of {where} can't be read ({_shorten(error)}); {CURE}"
            ) from None


def _shorten(error: Exception) -> str:
    text = str(error)
    return "fletcher32 does not hold" if "filter" in text or "fletcher" in text else text


def check_datasets(path: str | Path) -> list[tuple[str, str | None]]:
    """`(name, problem or None)` of every dataset beside the maps, each read whole."""
    found: list[tuple[str, str | None]] = []
    with h5py.File(path, "r", locking="best-effort") as file:
        for name in (name for name in file if name not in ("maps", "scales")):
            try:
                file[name][()]
                found.append((name, None))
            except _HDF5_ERRORS as error:
                found.append((name, f"can't be read ({_shorten(error)})"))
    return found
