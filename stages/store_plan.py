"""What the settings ask `extract` for: the clips, the backbone, the store of their maps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.augmentation import Augmentation
from dsts_pipeline.extract.backbones import Backbone, build_backbone
from dsts_pipeline.extract.devices import choose_device
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.views import ViewPlan, Views
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
    backbone.to(choose_device(chosen.device))
    return Work(index, backbone, _plan(settings, index, backbone))


def extraction_options(settings: Settings) -> dict[str, Any]:
    """Keywords of `extract_features`, as the settings say."""
    chosen, flips = settings.backbone, settings.dataset
    views = chosen.views.model_dump(exclude={"augmentation"})
    augmentation = Augmentation(**chosen.views.augmentation.model_dump())
    fallback = chosen.decoder_fallback
    return {
        "views": Views(
            **views, augmentation=augmentation, flips=FlipRule(flips.flip, flips.flip_pairs)
        ),
        "decoder": chosen.decoder,
        "decoder_fallback": None if fallback == "none" else fallback,
        "num_decode_workers": chosen.num_decode_workers,
        "clip_timeout_seconds": chosen.clip_timeout_seconds,
        "prefetch_bytes": chosen.prefetch_bytes,
        "batch_size": chosen.batch_size,
        "precision": chosen.precision,
        "compile": chosen.compile,
        "max_failed_fraction": chosen.max_failed_fraction,
    }


def _plan(settings: Settings, index: ClipIndex, backbone: Backbone) -> StorePlan:
    store, options = settings.store, extraction_options(settings)
    computing = Computing(options["batch_size"], options["precision"], options["compile"])
    rows = ViewPlan(
        index, backbone, options["views"], options["decoder"], options["decoder_fallback"]
    )
    sample_bytes = math.prod(backbone.map_shape) * STORED_DTYPES[store.dtype].itemsize
    return StorePlan(
        {"backbone": backbone.describe()} | rows.describe() | computing.describe(),
        clips=rows.samples,
        class_names=index.class_names,
        attribute_names=index.attribute_names,
        attributes=index.attributes,
        map_shape=backbone.map_shape,
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
