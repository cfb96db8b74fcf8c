"""Maps out of any zarr v3 array, through zarr-python: for stores that another program wrote.

Slower than `ShardSource` (about a tenth of its rate), and as safe as the array's codecs are: the
manifest vouches for the presence and size of its files, and a checksum codec for their content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.manifest import REWRITE
from dsts_pipeline.feature_store.verify import LocalFiles, StoreFiles


def find_foreign_part(small: Mapping[str, bytes], manifest: Mapping[str, Any]) -> str | None:
    """What in the arrays' metadata `ShardSource` does not know; None if it can read the maps.

    Args:
        small: contents of the store's small files. manifest: the store's.
    """
    array = manifest["array"]
    num_clips, *map_shape = array["shape"]
    per_shard, stored_type = array["samples_per_shard"], array["stored_type"]
    codec = "zstd" if "zstd" in array["codecs"] else "none"
    expected = {
        layout.ARRAY_NAME: layout.describe_maps(
            num_clips, map_shape, stored_type, per_shard, codec=codec
        )
    }
    if stored_type == "int8":
        scales = layout.describe_scales(num_clips, map_shape[0], per_shard)
        expected[layout.SCALES_NAME] = scales
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
    """A `MapSource` over zarr-python.

    Args:
        files: the store's files, in a local directory.
        manifest: the store's.

    Raises:
        StoreError: the store is not in a local directory.
    """

    def __init__(self, files: StoreFiles, manifest: Mapping[str, Any]) -> None:
        if not isinstance(files, LocalFiles):
            raise StoreError(
                f"{files.location}: written by another program, its codecs are read through "
                "zarr-python, which needs a local directory; copy the store there"
            )
        self.path, self._shape = files.path, tuple(manifest["array"]["shape"])
        self._has_scales = manifest["array"]["stored_type"] == "int8"
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}}

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """See `MapSource`."""
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
