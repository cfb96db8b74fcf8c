"""What the settings ask `extract` for: the clips, the backbone, the store of their maps."""

from __future__ import annotations

import math
from typing import NamedTuple

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.devices import choose_device
from dsts_pipeline.extract.models.backbones import Backbone, build_backbone
from dsts_pipeline.feature_store import StorePlan, choose_samples_per_shard
from dsts_pipeline.feature_store.stored_maps import STORED_DTYPES
from stages import places
from stages.extract_options import choose_computing, plan_views

_CHOICE = {"name", "weights", "weights_sha256", "key_map", "taps", "num_frames", "size_px"}


class Work(NamedTuple):
    """Clips, what makes their maps, and the store that will hold them."""

    clip_index: ClipIndex
    backbone: Backbone
    plan: StorePlan


def prepare_work(settings: Settings) -> Work:
    """Load the clip index and the backbone and plan the store.

    Raises:
        CheckpointError, DataError: There is no clip index, or no sound weights.
    """
    chosen, index = settings.backbone, ClipIndex.load(places.CLIP_INDEX)
    backbone = build_backbone(**chosen.model_dump(include=_CHOICE))
    backbone.to(choose_device(chosen.device))
    return Work(index, backbone, _plan(settings, index, backbone, backbone.taps[0]))


def plan_taps(settings: Settings, work: Work) -> list[StorePlan]:
    """The stores of all taps of the backbone, the main one first; their shards hold the same rows.

    Raises:
        DataError: See `prepare_work`.
    """
    index, backbone, plan = work
    return [plan, *(_plan(settings, index, backbone, tap) for tap in backbone.taps[1:])]


def _plan(settings: Settings, index: ClipIndex, backbone: Backbone, tap: str) -> StorePlan:
    store = settings.store
    rows = plan_views(settings, index, backbone)
    computing = choose_computing(settings)
    largest = max(math.prod(shape) for shape in backbone.map_shapes.values())
    sample_bytes = largest * STORED_DTYPES[store.dtype].itemsize
    return StorePlan(
        {"backbone": backbone.describe(tap)} | rows.describe() | computing.describe(),
        clips=rows.samples,
        class_names=index.class_names,
        attribute_names=index.attribute_names,
        attributes=index.attributes,
        map_shape=backbone.map_shapes[tap],
        dtype=store.dtype,
        codec=store.codec,
        zstd_level=store.zstd_level,
        on_overflow=store.on_overflow,
        frames=rows.frames,
        samples_per_shard=choose_samples_per_shard(
            len(rows.rows),
            sample_bytes,
            shard_bytes=store.shard_bytes,
            min_shards=store.min_shards,
        ),
    )
