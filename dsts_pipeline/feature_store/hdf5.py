"""A store (or a split of it) in one HDF5 file: written, read and checked.

Enters: an open store, or a file. Leaves: the file, complete or not at all; or a `FeatureStore` that
reads from it.

    maps        [n, C, T, H, W], one chunk a map, fletcher32; bfloat16 as its bits (uint16), with
                the attribute stored_type
    scales      float32 [n, C], for int8 only: map = stored * scale of its channel
    labels, views, positions      int64 [n]; positions: places in the store's planned order
    ids, splits, class_names      UTF-8 text of fixed length
    frames      int32 [n, F], where the store has them
    manifest, clips               JSON as bytes (an attribute holds 64 KiB at most), for our reader;
                `clips` tells groups, too
    attributes of the file        format, version, fingerprint, split, stored_type

All datasets have fletcher32, and the file's structure has HDF5 1.10's own checksums. What is not
there can't be read as zeros: the number of chunks is compared on opening. Data of this file alone
are read: HDF5 can also show the content of other files of this machine, by external links, raw
data kept elsewhere and virtual datasets; see `list_datasets`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dsts_pipeline.base.errors import LazyExtra, StoreError
from dsts_pipeline.base.files import format_bytes, fsync_directory, sign, tell_free
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.files import FileProblem
from dsts_pipeline.feature_store.manifest import count_clips, stored_positions
from dsts_pipeline.feature_store.reader import FeatureStore
from dsts_pipeline.feature_store.stored_types import STORED_DTYPES

if TYPE_CHECKING:
    import h5py

    _Item: TypeAlias = h5py.Group | h5py.Dataset | h5py.Datatype
else:
    h5py = LazyExtra("h5py", "an HDF5 file")

FORMAT_NAME = "dsts-feature-file"
FORMAT_VERSION = 1
HDF5_SUFFIXES = (".h5", ".hdf5")
HDF5_CURE = "export or copy the file again"
# What h5py makes of damage, depending on where it lies.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
_BLOCK_BYTES = 16 * 2**20  # written at a time
_MAX_SOFT_LINKS = 16  # that lead to one another; HDF5's own number
_SMALL = ("labels", "views", "positions", "ids", "splits", "class_names", "manifest", "clips")

# ---- writing -----------------------------------------------------------------------------------


def export_hdf5(
    store: FeatureStore,
    path: str | Path,
    split: str | None = None,
    *,
    on_maps: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write a store, or one split of it, to the file `path`, which appears when it is complete.

    Raises:
        StoreError: the file exists or can't be written, there is no such split, or the store is
            damaged.
        ValueError: the store's views are joined, which a reader of the file does by itself.
    """
    path = Path(path)
    if store.num_joined > 1:
        raise ValueError(f"{store.location}: its views are joined; export the store as it is")
    if path.exists():
        raise StoreError(f"{path}: exists already; delete it or choose another name")
    rows = np.arange(len(store)) if split is None else store.rows_of_split(split)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w", libver=("v110", "v110"), track_order=True) as file:
            _write_small(file, store, rows, split)
            _write_maps(file, store, rows, on_maps)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
        fsync_directory(path.parent)
    except (OSError, RuntimeError) as error:  # h5py tells a full disk as either.
        wanted = format_bytes(len(rows) * store.sample_bytes)
        raise StoreError(
            f"{path}: can't be written ({error}; about {wanted} are wanted, {tell_free(path)}); "
            "free space or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_maps(
    file: h5py.File, store: FeatureStore, rows: np.ndarray, on_maps: Callable[[int], None]
) -> None:
    dtype = store.stored_dtype
    shape = store.map_shape
    maps = file.create_dataset(
        "maps",
        (len(rows), *shape),
        dtype.newbyteorder("<"),
        chunks=(1, *shape),
        fletcher32=True,
        fillvalue=np.nan if dtype.kind == "f" else 0,
    )
    maps.attrs["stored_type"] = store.stored_type
    scales = None
    if store.stored_type == "int8":
        scales = file.create_dataset(
            "scales", (len(rows), shape[0]), "<f4", chunks=(1, shape[0]), fletcher32=True
        )
    block = max(1, _BLOCK_BYTES // store.sample_bytes)
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        stored = store.read_stored(chosen)
        maps[start : start + len(chosen)] = stored.maps
        if scales is not None:
            scales[start : start + len(chosen)] = stored.scales
        on_maps(len(chosen))


def _write_small(file: h5py.File, store: FeatureStore, rows: np.ndarray, split: str | None) -> None:
    table = _describe_clips(store, split)
    encoded = layout.encode_json(table)
    manifest = _describe_file(store, split, table, encoded)
    columns: dict[str, Any] = {
        "labels": store.labels[rows],
        "views": store.views[rows],
        "positions": store.positions[rows],
        "ids": _encode_text([store.video_ids[row] for row in rows]),
        "splits": _encode_text(store.splits[rows].tolist()),
        "class_names": _encode_text(store.class_names),
        "manifest": np.frombuffer(layout.encode_json(manifest), np.uint8),
        "clips": np.frombuffer(encoded, np.uint8),
    }
    if store.frames is not None:
        columns["frames"] = store.frames[rows]
    for name, values in columns.items():
        file.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)
    file.attrs["format"] = FORMAT_NAME
    file.attrs["version"] = FORMAT_VERSION
    file.attrs["fingerprint"] = store.fingerprint
    file.attrs["split"] = split or ""
    file.attrs["stored_type"] = store.stored_type


def _encode_text(texts: Any) -> np.ndarray:
    encoded = [text.encode() for text in texts] or [b""]
    length = max(1, max(map(len, encoded)))
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def _describe_clips(store: FeatureStore, split: str | None) -> dict[str, Any]:
    """Rows of the file and the failures among its clips as a table like clips.json."""
    clips = list(
        zip(
            store.positions.tolist(),
            store.video_ids,
            store.labels.tolist(),
            store.splits.tolist(),
            store.views.tolist(),
            strict=True,
        )
    )
    # A failed clip has no row, and so no label here; its place keeps the planned order.
    failures = store.manifest["failures"]
    views = store.planned["views"]
    clips += [
        (item["position"], item["id"], -1, item["split"], views[item["position"]])
        for item in failures
    ]
    chosen = sorted(clip for clip in clips if split in (None, clip[3]))
    names = ("positions", "ids", "labels", "splits", "views")
    columns: dict[str, list[Any]] = {
        name: [clip[place] for clip in chosen] for place, name in enumerate(names)
    }
    if store.planned_groups is not None:
        columns["groups"] = [store.planned_groups[position] for position in columns["positions"]]
    classes = {
        "names": list(store.class_names),
        "attribute_names": list(store.attribute_names),
        "attributes": [list(values) for values in store.attributes],
    }
    return {"samples": columns, "classes": classes}


def _describe_file(
    store: FeatureStore, split: str | None, table: Mapping[str, Any], encoded_table: bytes
) -> dict[str, Any]:
    """The store's manifest, cut to what is in the file, with the places of failures in `table`."""
    source = store.manifest
    places = table["samples"]["positions"]
    rank = {position: place for place, position in enumerate(places)}
    failures = [
        failure | {"position": rank[failure["position"]]}
        for failure in source["failures"]
        if failure["position"] in rank
    ]
    planned = {
        name: counts["planned"]
        for name, counts in source["counts"]["splits"].items()
        if split in (None, name)
    }
    content = {key: value for key, value in source.items() if key not in ("digest", "shards")}
    content |= {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "array": source["array"] | {"shape": [len(places), *store.map_shape]},
        "counts": count_clips(planned, failures),
        "files": {
            layout.CLIPS_NAME: {
                "bytes": len(encoded_table),
                "sha256": hashlib.sha256(encoded_table).hexdigest(),
            }
        },
        "shards": [],
        "failures": failures,
        "split": split,
        "exported_from": source["digest"],
    }
    return sign(content)


# ---- reading -----------------------------------------------------------------------------------


def open_hdf5(path: Path) -> FeatureStore:
    """The store in a file that `export_hdf5` wrote.

    Raises:
        StoreError: not such a file, of another version, incomplete or damaged.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such file; make it with `python cli.py export`")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            for name, reason in list_datasets(file).outside.items():
                raise StoreError(f"{path}: {name} {reason}, which no export writes; {HDF5_CURE}")
            manifest, table = _load_small(file, path)
            frames = file["frames"][()] if "frames" in file else None
            _require_maps(file, path, manifest)
    except _HDF5_ERRORS as error:
        raise StoreError(f"{path}: not a sound HDF5 file ({error}); {HDF5_CURE}") from None
    # The file has a row for each map that exists; `FeatureStore` counts failed clips too.
    stored = stored_positions(manifest)
    num_planned = manifest["array"]["shape"][0]
    rows = np.full(num_planned, -1, dtype=np.int64)
    rows[stored] = np.arange(len(stored))
    planned_frames = None
    if frames is not None:
        planned_frames = np.full((num_planned, frames.shape[1]), -1, dtype=np.int32)
        planned_frames[stored] = frames
    groups = table["samples"].get("groups")
    return FeatureStore(path, manifest, table, Hdf5Source(path, rows), planned_frames, groups)


def _load_small(file: h5py.File, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = file.attrs.get("format"), int(file.attrs.get("version", 0))
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise StoreError(
            f"{path}: format is {found[0]} version {found[1]}, expected {FORMAT_NAME} version "
            f"{FORMAT_VERSION}; bring in other files with `python cli.py import-features`"
        )
    if missing := [name for name in (*_SMALL, "maps") if name not in file]:
        raise StoreError(f"{path}: has no dataset {missing[0]}; {HDF5_CURE}")
    manifest = json.loads(file["manifest"][()].tobytes())
    encoded = file["clips"][()].tobytes()
    digest = hashlib.sha256(encoded).hexdigest()
    if sign(manifest) != manifest or manifest["files"][layout.CLIPS_NAME]["sha256"] != digest:
        raise StoreError(f"{path}: damaged, its manifest's digest does not hold; {HDF5_CURE}")
    return manifest, json.loads(encoded)


def _require_maps(file: h5py.File, path: Path, manifest: Mapping[str, Any]) -> None:
    shape = (manifest["counts"]["stored"], *manifest["array"]["shape"][1:])
    dtype = STORED_DTYPES[manifest["array"]["stored_type"]]
    maps = file["maps"]
    wanted = {"maps": maps} | ({"scales": file["scales"]} if dtype == np.int8 else {})
    if maps.shape != shape or maps.dtype != dtype:
        raise StoreError(
            f"{path}: its maps are {maps.dtype} {maps.shape}, expected {dtype} {shape}; {HDF5_CURE}"
        )
    for name, dataset in wanted.items():
        if (stored := dataset.id.get_num_chunks()) != len(maps):
            raise StoreError(f"{path}: {stored} of {len(maps)} chunks of {name} exist; {HDF5_CURE}")


class Hdf5Source:
    """A `MapSource` over an exported file.

    The file is opened once per process: a forked child closes what it inherited and opens it
    anew, a spawned one gets the path alone. Threads take turns, since HDF5 has one lock.

    Args:
        path: the file. rows: its row of each position, int64 `[planned]`, -1 where there is none.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self.path = path
        self._rows = rows
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
        """As in `MapSource`. Rows that follow one another are read together."""
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
                f"{self.path}: {name} of {where} can't be read ({_shorten(error)}); {HDF5_CURE}"
            ) from None


def _shorten(error: Exception) -> str:
    text = str(error)
    return "fletcher32 does not hold" if "filter" in text or "fletcher" in text else text


def check_datasets(path: str | Path) -> list[FileProblem]:
    """What is wrong with the datasets beside the maps, each of which is read whole."""
    problems = []
    with h5py.File(path, "r", locking="best-effort") as file:
        for name in (name for name in file if name not in ("maps", "scales")):
            try:
                file[name][()]
            except _HDF5_ERRORS as error:
                problems.append(FileProblem(name, f"can't be read ({_shorten(error)})"))
    return problems


# ---- the datasets of any HDF5 file, those alone whose data lie in it ---------------------------


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
    found = Datasets({}, {})
    seen: set[int] = set()
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
