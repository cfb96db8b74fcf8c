"""What a store will hold, decided before its first byte: enters settings, leaves a fingerprint.

Two plans have the same fingerprint exactly if their finished stores have the same bytes (given
that `fingerprint_parts` names all that decides the maps: clips' content, backbone, weights,
decoder, frames, ...), but for the file of groups, which maps do not depend on. The store's
directory bears the fingerprint as its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, get_args

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.base.settings import StoreSettings
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.stored_types import STORED_DTYPES, STORED_TYPES, OnOverflow

FINGERPRINT_LENGTH = 32
_ROUNDING = 16


class Sample(NamedTuple):
    """One planned map: a view of a clip. `label` is a class number, `view` counts from 0."""

    id: str
    label: int
    split: str
    view: int = 0


@dataclass(frozen=True)
class StorePlan:
    """The content of a store and its order.

    Args:
        fingerprint_parts: JSON-able description of all that decides the maps.
        clips: `(id, label, split)` or `(id, label, split, view)` per map, in storage order.
        class_names: one per class, index = label.
        map_shape: `(C, T, H, W)`.
        dtype: the storage type, one of "float16", "bfloat16", "float32", "int8".
        samples_per_shard: see `choose_samples_per_shard`.
        attribute_names, attributes: names of class attributes, and their values per class.
        codec: "none" or "zstd". zstd_level: 1 (fast) to 19; only with "zstd" does it matter.
        on_overflow: what becomes of a map with a value that `dtype` can't hold: "error" stops,
            "fail" lists its clip as failed, "saturate" cuts and counts the values.
        frames: numbers of the frames that each map was made of, one sequence per map; shorter
            ones are filled with -1. None: not known, and the store has no such array.
        groups: what clips of one origin share (player, source video), per map, None for those that
            don't tell. Maps do not depend on it, so it is no part of the fingerprint.

    Raises:
        DataError: no clip, a clip given twice, or a label without a class.
        ValueError: a wrong storage option, map shape, shard size or number of frame lists or
            groups (a fault of the calling code).

    Examples:
        >>> clips = [("dive", 0, "train"), ("jump", 1, "test")]
        >>> plan = StorePlan({"seed": 0}, clips, class_names=("a", "b"), map_shape=(8, 4, 2, 2))
        >>> plan.num_shards, plan.sample_bytes  # float16
        (1, 256)
        >>> plan.fingerprint == StorePlan({"seed": 1}, clips, ("a", "b"), (8, 4, 2, 2)).fingerprint
        False
    """

    fingerprint_parts: Mapping[str, Any]
    clips: Sequence[Sample | tuple]
    class_names: Sequence[str]
    map_shape: tuple[int, int, int, int]
    dtype: str = "float16"
    samples_per_shard: int = 64
    attribute_names: Sequence[str] = field(default=())
    attributes: Sequence[Sequence[str]] = field(default=())
    codec: str = "none"
    zstd_level: int = 1
    on_overflow: OnOverflow = "error"
    frames: Sequence[Sequence[int]] | np.ndarray | None = field(default=None, compare=False)
    groups: Sequence[str | None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "map_shape", tuple(int(size) for size in self.map_shape))
        _check_choice("dtype", self.dtype, STORED_TYPES)
        _check_choice("codec", self.codec, layout.CODECS)
        _check_choice("on_overflow", self.on_overflow, get_args(OnOverflow))
        if not 1 <= self.zstd_level <= 19:
            raise ValueError(f"zstd_level is {self.zstd_level}, expected 1 to 19")
        if len(self.map_shape) != 4 or min(self.map_shape) < 1:
            raise ValueError(f"map_shape is {self.map_shape}, expected (C, T, H, W), each >= 1")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}, expected >= 1")
        _check_samples(self.samples, len(self.class_names))
        if self.frames is not None and len(self.frames) != self.num_clips:
            raise ValueError(f"{len(self.frames)} frame lists, expected one of {self.num_clips}")
        if self.groups is not None and len(self.groups) != self.num_clips:
            raise ValueError(f"{len(self.groups)} groups, expected one of {self.num_clips}")

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The planned maps in storage order."""
        return tuple(Sample(*clip) for clip in self.clips)

    @property
    def num_clips(self) -> int:
        """Number of planned maps."""
        return len(self.clips)

    @property
    def num_shards(self) -> int:
        """Number of shard files."""
        return -(-self.num_clips // self.samples_per_shard)

    @property
    def stored_dtype(self) -> np.dtype:
        """NumPy type of the maps as they are stored (bfloat16: its bits, as uint16)."""
        return STORED_DTYPES[self.dtype]

    @property
    def sample_bytes(self) -> int:
        """Bytes of one stored map, uncompressed, without its checksum and scales."""
        return int(np.prod(self.map_shape)) * self.stored_dtype.itemsize

    def positions_of(self, shard: int) -> range:
        """Positions of the clips that shard number `shard` holds."""
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard}: the store has shards 0 to {self.num_shards - 1}")
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, self.num_clips))

    @cached_property
    def arrays(self) -> dict[str, dict[str, Any]]:
        """The zarr v3 metadata documents of the store's arrays, by their path."""
        documents = layout.describe_maps(
            [self.num_clips, *self.map_shape],
            self.dtype,
            self.samples_per_shard,
            codec=self.codec,
            zstd_level=self.zstd_level,
        )
        if self.frame_table is not None:
            documents[layout.FRAMES_NAME] = layout.describe_frames(*self.frame_table.shape)
        return documents

    @cached_property
    def frame_table(self) -> np.ndarray | None:
        """Frame numbers int32 `[maps, F]`, -1 where a map has fewer; None: not known."""
        if self.frames is None:
            return None
        longest = max(1, max(len(numbers) for numbers in self.frames))
        table = np.full((self.num_clips, longest), -1, dtype=np.int32)
        for row, numbers in zip(table, self.frames, strict=True):
            row[: len(numbers)] = numbers
        return table

    @cached_property
    def clip_table(self) -> dict[str, Any]:
        """Content of clips.json: columns of equal length, one entry per planned map."""
        ids, labels, splits, views = zip(*self.samples, strict=True)
        columns = {
            "ids": list(ids),
            "labels": [int(label) for label in labels],
            "splits": list(splits),
            "views": [int(view) for view in views],
        }
        classes = {
            "names": list(self.class_names),
            "attribute_names": list(self.attribute_names),
            "attributes": [list(values) for values in self.attributes],
        }
        return {"samples": columns, "classes": classes}

    @property
    def group_table(self) -> dict[str, Any] | None:
        """Content of the file of groups, an entry per planned map; None where none is told."""
        if self.groups is None or all(group is None for group in self.groups):
            return None
        return {"groups": list(self.groups)}

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal name of the store, from everything in this plan."""
        content: dict[str, Any] = {
            "format": [layout.FORMAT_NAME, layout.FORMAT_VERSION],
            "parts": json.loads(json.dumps(dict(self.fingerprint_parts))),
            "arrays": self.arrays,
            "clips": self.clip_table,
        }
        if self.frame_table is not None:
            encoded = self.frame_table.astype("<i4").tobytes()
            content["frames"] = hashlib.sha256(encoded).hexdigest()
        if self.on_overflow != "error":  # With "error" no finished store depends on it.
            content["on_overflow"] = self.on_overflow
        return sha256_json(content)[:FINGERPRINT_LENGTH]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def _check_samples(samples: tuple[Sample, ...], num_classes: int) -> None:
    if not samples:
        raise DataError("no clip to store; expected at least one: check the clip index")
    seen: set[tuple[str, int]] = set()
    for sample in samples:
        if not 0 <= sample.label < num_classes:
            raise DataError(
                f"clip {sample.id}: label {sample.label}, expected 0 to {num_classes - 1}; "
                "correct the annotations"
            )
        if (sample.id, sample.view) in seen:
            raise DataError(
                f"clip {sample.id}: listed twice, expected once; correct the annotations"
            )
        seen.add((sample.id, sample.view))


def choose_samples_per_shard(
    num_clips: int, sample_bytes: int, *, shard_bytes: int, min_shards: int
) -> int:
    """How many maps one shard holds.

    As many as fit into `shard_bytes`, but few enough that there are about `min_shards` shards:
    a shard is what a stopped extraction loses. Counts above 16 are rounded down to a multiple of
    16, so that a shard is made of whole extraction batches; no store is cut finer than 16 maps a
    shard unless one map alone is that large.

    Choice: 128 MiB and 32 shards by default give 80 maps a shard for maps of 1.6 MB (212 shards
    for Diving48), and 112 maps, 3.7 MB, for the 3,600 embedded clips of 32 KiB (33 shards).
    """
    fitting = max(1, shard_bytes // max(1, sample_bytes))
    spread = max(_ROUNDING, -(-num_clips // max(1, min_shards)))
    samples = min(fitting, spread)
    return samples // _ROUNDING * _ROUNDING if samples > _ROUNDING else samples


def storage_options(
    store: StoreSettings, num_clips: int, map_shapes: Iterable[Sequence[int]]
) -> dict[str, Any]:
    """The options of a `StorePlan` that the settings decide: type, codec, maps a shard.

    Args:
        map_shapes: shapes of the maps; those of several stores whose shards are to hold the same
            clips.
    """
    largest = max(math.prod(shape) for shape in map_shapes)
    return {
        "dtype": store.dtype,
        "codec": store.codec,
        "zstd_level": store.zstd_level,
        "on_overflow": store.on_overflow,
        "samples_per_shard": choose_samples_per_shard(
            num_clips,
            largest * STORED_DTYPES[store.dtype].itemsize,
            shard_bytes=store.shard_bytes,
            min_shards=store.min_shards,
        ),
    }
