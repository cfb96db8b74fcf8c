"""Open a finished store: by its directory, file or URL, or as outputs/features.json records it.

Enters: where the store is. Leaves: a `FeatureStore` whose files were found to be there. Arrays
that another program wrote are read through zarr-python.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import read_json, sha256_json
from dsts_pipeline.base.settings import DatasetSettings, FeedSettings
from dsts_pipeline.base.transfers import STALL_SECONDS
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.files import LocalFiles, StoreFiles, require_presence
from dsts_pipeline.feature_store.hdf5 import HDF5_SUFFIXES, open_hdf5
from dsts_pipeline.feature_store.joining import join_views
from dsts_pipeline.feature_store.manifest import REWRITE, drop_provenance, load_manifest
from dsts_pipeline.feature_store.reader import FeatureStore, MapSource
from dsts_pipeline.feature_store.remote import RemoteFiles
from dsts_pipeline.feature_store.shards import CRC_BYTES, ShardSource

CACHE_BYTES = 20 * 2**30


def open_store(
    location: str | Path,
    *,
    verify_checksums: bool = True,
    num_threads: int = 1,
    cache_dir: str | Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    stall_seconds: float = STALL_SECONDS,
) -> FeatureStore:
    """Open a finished store: manifest, metadata, presence and size of every shard are checked.

    Args:
        location: a store's directory, an exported HDF5 file (.h5, .hdf5), or a URL.
        verify_checksums: verify the crc32c of every map that is read.
        num_threads: threads that read (and decode) one batch.
        cache_dir, cache_bytes: where shards of a remote store are kept, and how much of them.
        stall_seconds: for so long the server of a remote store may send next to nothing.

    Raises:
        StoreError: no store, an unfinished or damaged one; the message says what to run.
    """
    path = Path(location)
    files: StoreFiles
    if "://" in str(location):
        files = RemoteFiles(
            str(location),
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            stall_seconds=stall_seconds,
        )
        manifest = files.load_manifest()
    elif path.suffix in HDF5_SUFFIXES and not path.is_dir():
        return open_hdf5(path)
    else:
        files = LocalFiles(path)
        manifest = load_manifest(path)
    small = require_presence(files, manifest)
    source: MapSource
    if foreign := find_foreign_part(small, manifest):
        note = f"{files.location}: read through zarr-python, slowly, since it has {foreign}"
        warnings.warn(note, stacklevel=2)
        source = ZarrSource(files)
    else:
        source = ShardSource(
            files, manifest, verify_checksums=verify_checksums, num_threads=num_threads
        )
    clip_table = json.loads(small[layout.CLIPS_NAME])
    frames = _decode_frames(small)
    groups = _decode_groups(small)
    return FeatureStore(files.location, manifest, clip_table, source, frames, groups)


def _decode_groups(small: Mapping[str, bytes]) -> list[str | None] | None:
    """The group of each planned map; None where the store tells none."""
    name = layout.find_groups(small)
    return None if name is None else json.loads(small[name])["groups"]


def _decode_frames(small: Mapping[str, bytes]) -> np.ndarray | None:
    """Frame numbers int32 `[positions, F]`; the file's digest has been compared."""
    if layout.FRAMES_CHUNK_NAME not in small:
        return None
    shape = json.loads(small[layout.FRAMES_NAME])["shape"]
    content = small[layout.FRAMES_CHUNK_NAME][:-CRC_BYTES]
    return np.frombuffer(content, dtype="<i4").astype(np.int32).reshape(shape)


# ---- the store of a run: outputs/features.json -------------------------------------------------

_OWN_OF_RECORD = ("store", "stores_of_other_taps", "manifest_sha256")


def record_store(
    manifest: Mapping[str, Any], store: Path, other_taps: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What outputs/features.json says of a finished store: all of its manifest but provenance.

    Two extractions of the same bytes give the same record. `manifest_sha256` is the digest of what
    is recorded of the manifest; the store's place may be changed by hand when it is moved.

    Args:
        other_taps: Where the stores of a run's other taps are, by tap.
    """
    content = drop_provenance(manifest)
    own: dict[str, Any] = {"store": str(store), "manifest_sha256": sha256_json(content)}
    if other_taps:
        own["stores_of_other_taps"] = dict(other_taps)
    return content | own


def read_features_record(path: Path) -> dict[str, Any]:
    """The record at `path`, outputs/features.json. Those of earlier releases have no digest.

    Raises:
        DataError: There is none, or it was changed after it was written.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("store"), str):
        raise DataError(f"{path}: names no store; run `python cli.py extract`")
    content = {key: value for key, value in record.items() if key not in _OWN_OF_RECORD}
    if record.get("manifest_sha256") not in (None, sha256_json(content)):
        raise DataError(
            f"{path}: changed after it was written, its digest does not hold (only "
            '"store" may be changed by hand); run `python cli.py extract`'
        )
    return record


def open_features(
    path: Path, feed: FeedSettings, dataset: DatasetSettings | None = None
) -> FeatureStore:
    """The feature store that the record `path` names, by its directory, file or URL.

    Args:
        path: outputs/features.json.
        feed: How the store is read, whether views are joined, where remote shards are kept.
        dataset: Of which the fold counts, whose clips are test; None: splits are the store's own.

    Raises:
        DataError: There is no features.json, views can't be joined, or folds can't be dealt.
        StoreError: The store is missing, unfinished, damaged, or another one than was recorded.
    """
    record = read_features_record(path)
    store = open_store(
        record["store"],
        verify_checksums=feed.verify_checksums,
        num_threads=feed.num_read_threads,
        cache_dir=feed.cache_dir,
        cache_bytes=feed.cache_bytes,
        stall_seconds=feed.stall_seconds,
    )
    require_recorded(path, record, store.manifest, store.location)
    if feed.views == "joined":
        store = join_views(store)
    if dataset is None or dataset.num_folds is None or dataset.fold is None:
        return store
    return store.deal_folds(dataset.num_folds, dataset.heldout_seed)[dataset.fold]


def require_recorded(
    path: Path, record: Mapping[str, Any], manifest: Mapping[str, Any], location: str
) -> None:
    """Refuse a store whose manifest is not the one recorded in `path`, provenance aside.

    A record of an earlier release has no digest; what it holds of the manifest is compared.

    Raises:
        StoreError: A part differs: it is named.
    """
    content = drop_provenance(manifest)
    names = content.keys() & record.keys()
    differing = sorted(name for name in names if content[name] != record[name])
    if record.get("manifest_sha256") not in (None, sha256_json(content)):
        differing.append("manifest")
    if differing:
        part = differing[0]
        raise StoreError(
            f"{location}: its {part} {'are' if part.endswith('s') else 'is'} not what "
            f"{path} recorded: the store is another one, or was changed after it was "
            "written; run `python cli.py extract` (or `import-features`), which sets both right"
        )


# ---- arrays that another program wrote ---------------------------------------------------------


def find_foreign_part(small: Mapping[str, bytes], manifest: Mapping[str, Any]) -> str | None:
    """What in the arrays' metadata `ShardSource` does not know; None if it can read the maps.

    Args:
        small: contents of the store's small files. manifest: the store's.
    """
    array = manifest["array"]
    expected = layout.describe_maps(
        array["shape"],
        array["stored_type"],
        array["samples_per_shard"],
        codec="zstd" if "zstd" in array["codecs"] else "none",
    )
    for name, known in expected.items():
        found = json.loads(small[name])
        for key in ("data_type", "chunk_grid", "chunk_key_encoding", "codecs", "attributes"):
            if _drop_levels(found.get(key)) != _drop_levels(known[key]):
                return f"{name}: {key} {json.dumps(found.get(key))}"
    return None


def _drop_levels(value: Any) -> Any:
    """`value` without the settings of compressors: they do not matter for reading."""
    if isinstance(value, list):
        return [_drop_levels(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("name") == "zstd":
        return {"name": "zstd"}
    return {key: _drop_levels(item) for key, item in value.items()}


class ZarrSource:
    """A `MapSource` over zarr-python, which knows other codecs, at about a tenth of the rate.

    It is as safe as the array's codecs are: the manifest vouches for the presence and size of the
    files, and a checksum codec for their content.

    Raises:
        StoreError: the store is not in a local directory.
    """

    def __init__(self, files: StoreFiles) -> None:
        if not isinstance(files, LocalFiles):
            raise StoreError(
                f"{files.location}: written by another program, its codecs are read through "
                "zarr-python, which needs a local directory; copy the store there"
            )
        self.path = files.path
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}}

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """As in `MapSource`."""
        if self._process != os.getpid():
            self._start()
        for row, position in enumerate(positions.tolist()):
            out[row] = self._read("maps", position)
            if scales is not None:
                scales[row] = self._read("scales", position)

    def _read(self, name: str, position: int) -> np.ndarray:
        import zarr

        try:
            if name not in self._arrays:
                self._arrays[name] = zarr.open_array(self.path / name, mode="r", zarr_format=3)
            return self._arrays[name][position]
        except Exception as error:  # Every codec has errors of its own.
            array = self._arrays.get(name)
            where = "zarr.json" if array is None else self._name_chunk(array, position)
            raise StoreError(
                f"{self.path}: {name}/{where} can't be read through zarr-python "
                f"({type(error).__name__}: {error}); restore it from where it came, or {REWRITE}"
            ) from error

    def _name_chunk(self, array: Any, position: int) -> str:
        size = (array.shards or array.chunks)[0]
        key = (position // size, *(0 for _ in array.shape[1:]))
        return array.metadata.chunk_key_encoding.encode_chunk_key(key)
