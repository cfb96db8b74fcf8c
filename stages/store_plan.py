"""What the settings ask `extract` for: the clips, the backbone, the store of their maps."""

from __future__ import annotations

import math
from typing import NamedTuple

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.backbones import Backbone, build_backbone
from dsts_pipeline.extract.runner import describe_extraction, frames_used
from dsts_pipeline.feature_store import StorePlan, choose_samples_per_shard
from dsts_pipeline.feature_store.stored_maps import STORED_DTYPES
from stages import places


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
    backbone = build_backbone(
        chosen.name, weights=chosen.weights, num_frames=chosen.num_frames, size_px=chosen.size_px
    )
    return Work(index, backbone, _plan(settings, index, backbone))


def _plan(settings: Settings, index: ClipIndex, backbone: Backbone) -> StorePlan:
    store = settings.store
    sample_bytes = math.prod(backbone.map_shape) * STORED_DTYPES[store.dtype].itemsize
    return StorePlan(
        describe_extraction(index, backbone, decoder=settings.backbone.decoder),
        clips=[(clip.id, clip.label, clip.split) for clip in index.clips],
        class_names=index.class_names,
        attribute_names=index.attribute_names,
        attributes=index.attributes,
        map_shape=backbone.map_shape,
        dtype=store.dtype,
        codec=store.codec,
        zstd_level=store.zstd_level,
        on_overflow=store.on_overflow,
        frames=[frames_used(clip, backbone.num_frames).tolist() for clip in index.clips],
        samples_per_shard=choose_samples_per_shard(
            len(index.clips),
            sample_bytes,
            shard_bytes=store.shard_bytes,
            min_shards=store.min_shards,
        ),
    )
