"""Names and metadata of the files that make up a store (docs/store-format.md).

A store is a zarr v3 group: any zarr reader opens it. The metadata documents are written here and
not by a zarr library, so that the same plan gives the same bytes under every library version.
"""

from __future__ import annotations

import json
from typing import Any

FORMAT_NAME = "dsts-feature-store"
FORMAT_VERSION = 1
CODECS = ("bytes", "crc32c")

MANIFEST_NAME = "manifest.json"
CLIPS_NAME = "clips.json"
GROUP_NAME = "zarr.json"
ARRAY_NAME = "maps/zarr.json"
LOCK_NAME = ".writer.lock"
DIMENSION_NAMES = ("clip", "C", "T", "H", "W")


def name_shard(shard: int) -> str:
    """Path of a shard inside the store, as the array's chunk key encoding prescribes."""
    return f"maps/c.{shard}.0.0.0.0"


def name_sidecar(shard: int) -> str:
    """Path of the small file that vouches for a complete shard."""
    return f"shards/{shard:06d}.json"


def describe_group(fingerprint: str) -> dict[str, Any]:
    """The zarr v3 group metadata document."""
    attributes = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "fingerprint": fingerprint}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def describe_array(
    num_clips: int, map_shape: tuple[int, ...], dtype: str, samples_per_shard: int
) -> dict[str, Any]:
    """The zarr v3 metadata document of `maps`: one inner chunk a clip, `samples_per_shard` a shard.

    The fill value is NaN: what is not there can never be taken for a map of zeros.
    """
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little_endian, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [1, *map_shape],
        "codecs": checked,
        "index_codecs": checked,
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_clips, *map_shape],
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [samples_per_shard, *map_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": list(DIMENSION_NAMES),
    }


def encode_json(value: Any) -> bytes:
    """Indented JSON with sorted keys: the same value gives the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
