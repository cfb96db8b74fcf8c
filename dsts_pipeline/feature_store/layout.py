"""Names and metadata of the files that make up a store (docs/store-format.md).

A store is a zarr v3 group: any zarr reader opens it. The metadata documents are written here and
not by a zarr library, so that the same plan gives the same bytes under every library version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

FORMAT_NAME = "dsts-feature-store"
FORMAT_VERSION = 2
CODECS = ("none", "zstd")

MANIFEST_NAME = "manifest.json"
CLIPS_NAME = "clips.json"
GROUP_NAME = "zarr.json"
ARRAY_NAME = "maps/zarr.json"
SCALES_NAME = "scales/zarr.json"
FRAMES_NAME = "frames/zarr.json"
FRAMES_CHUNK_NAME = "frames/c.0.0"
LOCK_NAME = ".writer.lock"

_DIMENSION_NAMES = ("clip", "C", "T", "H", "W")
_CRC32C = {"name": "crc32c"}
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_ZARR_TYPES = {"bfloat16": "uint16"}  # Its bit patterns: few readers know a bfloat16.
_FILL_VALUES = {"bfloat16": 0, "int8": 0}


def name_shard(shard: int) -> str:
    """Path of a shard of the maps inside the store, as the chunk key encoding prescribes."""
    return f"maps/c.{shard}.0.0.0.0"


def name_scales(shard: int) -> str:
    """Path of the shard that holds the scales of the maps of shard number `shard`."""
    return f"scales/c.{shard}.0"


def name_shard_files(shard: int, stored_type: str) -> list[str]:
    """Paths of all files of a shard, that of the maps first."""
    return [name_shard(shard), *([name_scales(shard)] if stored_type == "int8" else [])]


def name_groups(content: bytes) -> str:
    """Path of the file that holds the clips' groups, from its content: another one, another name.

    So it can be laid beside the one that the manifest names before the manifest is replaced.
    """
    return f"groups-{hashlib.sha256(content).hexdigest()[:8]}.json"


def find_groups(names: Iterable[str]) -> str | None:
    """The one of `names` that `name_groups` gave; None where a store tells no groups."""
    return next((name for name in names if name.startswith("groups-")), None)


def name_sidecar(shard: int) -> str:
    """Path of the small file that vouches for a complete shard."""
    return f"shards/{shard:06d}.json"


def describe_group(fingerprint: str) -> dict[str, Any]:
    """The zarr v3 group metadata document."""
    attributes = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "fingerprint": fingerprint}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def describe_maps(
    shape: Sequence[int],
    stored_type: str,
    samples_per_shard: int,
    *,
    codec: str = "none",
    zstd_level: int = 1,
) -> dict[str, dict[str, Any]]:
    """The zarr v3 metadata documents of `maps` and, for int8, of its float32 `scales`, by path.

    One inner chunk a clip, `samples_per_shard` a shard. The fill value of float maps is NaN: what
    is not there can't be taken for a map of zeros.

    Args:
        shape: `[clips, C, T, H, W]`; that of `scales` is `[clips, C]`.
    """
    codecs: list[dict[str, Any]] = [{"name": "bytes"} if stored_type == "int8" else _LITTLE_ENDIAN]
    if codec == "zstd":
        configuration = {"level": zstd_level, "checksum": False}
        codecs.append({"name": "zstd", "configuration": configuration})
    num_clips, *map_shape = shape
    maps = _describe_array(
        [num_clips, *map_shape],
        _ZARR_TYPES.get(stored_type, stored_type),
        _FILL_VALUES.get(stored_type, "NaN"),
        [samples_per_shard, *map_shape],
        _shard([1, *map_shape], [*codecs, _CRC32C]),
        {"stored_type": stored_type},
        _DIMENSION_NAMES,
    )
    if stored_type != "int8":
        return {ARRAY_NAME: maps}
    scales = _describe_array(
        [num_clips, map_shape[0]],
        "float32",
        "NaN",
        [samples_per_shard, map_shape[0]],
        _shard([1, map_shape[0]], [_LITTLE_ENDIAN, _CRC32C]),
        {},
        _DIMENSION_NAMES[:2],
    )
    return {ARRAY_NAME: maps, SCALES_NAME: scales}


def describe_frames(num_clips: int, num_frames: int) -> dict[str, Any]:
    """The metadata document of `frames`: int32 `[clips, F]` in one chunk."""
    shape = [num_clips, num_frames]
    return _describe_array(
        shape, "int32", -1, shape, [_LITTLE_ENDIAN, _CRC32C], {}, ("clip", "frame")
    )


def _shard(inner_shape: list[int], codecs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    configuration = {
        "chunk_shape": inner_shape,
        "codecs": codecs,
        "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def _describe_array(
    shape: list[int],
    data_type: str,
    fill_value: str | int,
    chunk_shape: list[int],
    codecs: list[dict[str, Any]],
    attributes: dict[str, str],
    dimension_names: Sequence[str],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": list(dimension_names),
    }


def encode_json(value: Any) -> bytes:
    """Indented JSON with sorted keys: the same value gives the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
