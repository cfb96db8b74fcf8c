"""A store, or one split of it, into one HDF5 file (layout: `hdf5.py`), for exchange and few inodes.

Enters: an open store. Leaves: a file that appears under its name when it is complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import format_bytes, fsync_directory, sign, tell_free
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.hdf5 import FORMAT_NAME, FORMAT_VERSION
from dsts_pipeline.feature_store.reader import FeatureStore

_BLOCK_BYTES = 16 * 2**20


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
    """
    path = Path(path)
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
    dtype, shape = store.stored_dtype, store.map_shape
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
        size = len(rows), shape[0]
        scales = file.create_dataset("scales", size, "<f4", chunks=(1, shape[0]), fletcher32=True)
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
    file.attrs["format"], file.attrs["version"] = FORMAT_NAME, FORMAT_VERSION
    file.attrs["fingerprint"], file.attrs["split"] = store.fingerprint, split or ""
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
    clips += [(item["position"], item["id"], -1, item["split"], 0) for item in failures]
    chosen = sorted(clip for clip in clips if split in (None, clip[3]))
    names = ("positions", "ids", "labels", "splits", "views")
    columns = {name: [clip[place] for clip in chosen] for place, name in enumerate(names)}
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
    source, places = store.manifest, table["samples"]["positions"]
    rank = {position: place for place, position in enumerate(places)}
    failures = [
        failure | {"position": rank[failure["position"]]}
        for failure in source["failures"]
        if failure["position"] in rank
    ]
    counted = {name: c for name, c in source["counts"]["splits"].items() if split in (None, name)}
    content = {key: value for key, value in source.items() if key not in ("digest", "shards")}
    content |= {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "array": source["array"] | {"shape": [len(places), *store.map_shape]},
        "counts": {
            "planned": len(places),
            "stored": len(places) - len(failures),
            "failed": len(failures),
            "splits": counted,
        },
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
