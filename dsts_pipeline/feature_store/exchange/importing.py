"""Features made elsewhere into a store: checked, fingerprinted by their content, resumable.

Enters: a source and the rows of labels.csv. Leaves: a finished store like any other. The source is
read twice: once to check every map and to name the store by what they hold, once to write them. In
between nothing but a digest per map is kept. A clip without a usable map is listed in the manifest
with its reason, and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.feature_store.exchange.import_labels import LabelRow, LabelTable
from dsts_pipeline.feature_store.exchange.import_sources import FeatureSource, StoreSource, Unusable
from dsts_pipeline.feature_store.plan import StorePlan, choose_samples_per_shard
from dsts_pipeline.feature_store.stored_maps import STORED_DTYPES
from dsts_pipeline.feature_store.writer import StoreWriter

_NUM_LISTED = 3
OnMaps = Callable[[int], None]


@dataclass(frozen=True)
class SourceSurvey:
    """What the first reading of a source found.

    Attributes:
        map_shape: `(C, T, H, W)`, that of most maps.
        digests: of each row's map; None where there is no usable one.
        failures: reason by row of those.
    """

    map_shape: tuple[int, int, int, int]
    digests: tuple[str | None, ...]
    failures: Mapping[int, str]


def survey_source(
    source: FeatureSource,
    rows: Sequence[LabelRow],
    *,
    max_failed_fraction: float,
    on_maps: OnMaps = lambda count: None,
) -> SourceSurvey:
    """Read the map of every row once and check it.

    Raises:
        DataError: more than `max_failed_fraction` of the rows have no usable map.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    digests: list[str | None] = []
    failures: dict[int, str] = {}
    for number, row in enumerate(rows):
        digests.append(None)
        try:
            features = _load_finite(source, row)
            shapes[number], digests[-1] = features.shape, _digest(features)
        except Unusable as error:
            failures[number] = str(error)
        on_maps(1)
    if not shapes:
        raise DataError(f"no clip has a usable map, such as {_list(rows, failures)}")
    map_shape = Counter(shapes.values()).most_common(1)[0][0]
    for number, shape in shapes.items():
        if shape != map_shape:
            failures[number] = f"map is {shape}, most are {map_shape}"
            digests[number] = None
    allowed = int(max_failed_fraction * len(rows) + 1e-9)
    if len(failures) > allowed:
        raise DataError(
            f"{len(failures)} of {len(rows)} clips have no usable map, {allowed} are allowed by "
            f"backbone.max_failed_fraction = {max_failed_fraction:g} ({_list(rows, failures)})"
        )
    channels, steps, height, width = map_shape
    ordered = dict(sorted(failures.items()))
    return SourceSurvey((channels, steps, height, width), tuple(digests), ordered)


def _load_finite(source: FeatureSource, row: LabelRow) -> np.ndarray:
    features = source.load(row)
    finite = np.isfinite(features).all(axis=(1, 2, 3))
    if not finite.all():
        raise Unusable(f"channel {int(np.argmin(finite))} of its map holds NaN or Inf")
    if features.dtype.itemsize > 4 and np.abs(features).max() > np.finfo(np.float32).max:
        raise Unusable("a value of its map overflows float32")
    return features


def _digest(features: np.ndarray) -> str:
    """SHA-256 of a map's type, shape and values in C order."""
    little_endian = np.ascontiguousarray(features, features.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little_endian.dtype.str} {features.shape}".encode())
    digest.update(little_endian.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _list(rows: Sequence[LabelRow], failures: Mapping[int, str]) -> str:
    numbers = sorted(failures)[:_NUM_LISTED]
    listed = "; ".join(f"{rows[number].id}: {failures[number]}" for number in numbers)
    return listed + ("; ..." if len(failures) > _NUM_LISTED else "")


def plan_import(
    source: FeatureSource,
    table: LabelTable,
    survey: SourceSurvey,
    *,
    name: str,
    shard_bytes: int,
    min_shards: int,
    **storage: Any,
) -> StorePlan:
    """The store of an import.

    Args:
        name: of the data set. storage: `dtype`, `codec`, ... of `StorePlan`.
    """
    rows = table.rows
    content = [[row.id, row.view, digest] for row, digest in zip(rows, survey.digests, strict=True)]
    labels = [[row.id, row.view, row.label, row.split] for row in rows]
    made_of: dict[str, Any] = {
        "import": {"content": sha256_json(content)},
        "clips": {"dataset": name, "digest": sha256_json([labels, list(table.class_names)])},
    }
    class_names: Sequence[str] = table.class_names
    attributes: dict[str, Any] = {}
    if isinstance(source, StoreSource):
        store = source.store
        made_of["import"]["store"] = store.fingerprint
        made_of |= {k: v for k, v in store.manifest["made_of"].items() if k == "backbone"}
        if table.numbered and len(class_names) <= len(store.class_names):
            class_names = store.class_names
            attributes = {
                "attribute_names": store.attribute_names,
                "attributes": store.attributes,
            }
    sample_bytes = int(np.prod(survey.map_shape)) * STORED_DTYPES[storage["dtype"]].itemsize
    return StorePlan(
        made_of,
        clips=[(row.id, row.label, row.split, row.view) for row in rows],
        class_names=class_names,
        map_shape=survey.map_shape,
        samples_per_shard=choose_samples_per_shard(
            len(rows), sample_bytes, shard_bytes=shard_bytes, min_shards=min_shards
        ),
        **attributes,
        **storage,
    )


def write_import(
    source: FeatureSource,
    rows: Sequence[LabelRow],
    survey: SourceSurvey,
    writer: StoreWriter,
    *,
    provenance: Mapping[str, Any],
    on_maps: OnMaps = lambda count: None,
) -> Path:
    """Write every shard that is not there yet, and the manifest; returns its path.

    Raises:
        DataError: a map is no longer what it was at the first reading.
        StoreError: a value overflows the storage type, or the disk is full.
    """
    for shard in writer.claims():
        positions = writer.shard_clips(shard)
        maps = np.zeros((len(positions), *survey.map_shape), np.float32)
        for target, features in zip(
            maps, _read_again(source, rows, survey, positions), strict=True
        ):
            if features is not None:
                target[...] = features
        failed = {n: reason for n, reason in survey.failures.items() if n in positions}
        writer.write_shard(shard, maps, failed)
        on_maps(len(positions))
    return writer.finish(provenance)


def _read_again(
    source: FeatureSource, rows: Sequence[LabelRow], survey: SourceSurvey, positions: range
) -> Iterator[np.ndarray | None]:
    for number in positions:
        if number in survey.failures:
            yield None
            continue
        try:
            features = source.load(rows[number])
            same = _digest(features) == survey.digests[number]
        except Unusable:
            same = False
        if not same:
            raise DataError(
                f"clip {rows[number].id}: its map changed while it was being imported; run "
                "`python cli.py import-features` again when nothing writes the source"
            )
        yield features
