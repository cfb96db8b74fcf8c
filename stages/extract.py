"""Cache the frozen backbone's map of every clip in the index."""

from __future__ import annotations

import math

import numpy as np

from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.backbones import Backbone, build_backbone
from dsts_pipeline.extract.runner import (
    ClipFailure,
    check_failures,
    describe_extraction,
    extract_features,
)
from dsts_pipeline.feature_store import StorePlan, StoreWriter, choose_samples_per_shard
from stages import places


def run(settings: Settings) -> None:
    """Finish the store of these settings and write its manifest to outputs/features.json.

    Raises:
        CheckpointError, DataError, StoreError: See the parts; the finished shards stay.
    """
    chosen = settings.backbone
    index = ClipIndex.load(places.CLIP_INDEX)
    backbone = build_backbone(
        chosen.name, weights=chosen.weights, num_frames=chosen.num_frames, size_px=chosen.size_px
    )
    with StoreWriter(settings.store.root, _plan(settings, index, backbone)) as writer:
        summary = extract_features(
            index,
            backbone,
            writer,
            decoder=chosen.decoder,
            num_decode_workers=chosen.num_decode_workers,
            batch_size=chosen.batch_size,
            max_failed_fraction=chosen.max_failed_fraction,
        )
        sections = {"backbone": chosen.model_dump(mode="json")}
        manifest = read_json(writer.finish(collect_provenance(sections)))
    # Also those of earlier runs that were interrupted, or had another limit.
    failures = [ClipFailure(failure["id"], failure["reason"]) for failure in manifest["failures"]]
    check_failures(failures, len(index.clips), max_failed_fraction=chosen.max_failed_fraction)
    write_json(places.FEATURES, manifest | {"store": str(writer.path)})
    console.print(
        f"{writer.path}: {manifest['counts']['stored']:,} maps, {len(failures):,} clips failed; "
        f"{summary.num_clips:,} extracted now in {summary.seconds:.0f} s",
        soft_wrap=True,
    )


def _plan(settings: Settings, index: ClipIndex, backbone: Backbone) -> StorePlan:
    store = settings.store
    sample_bytes = math.prod(backbone.map_shape) * np.dtype(store.dtype).itemsize
    return StorePlan(
        describe_extraction(index, backbone, decoder=settings.backbone.decoder),
        clips=[(clip.id, clip.label, clip.split) for clip in index.clips],
        class_names=index.class_names,
        attribute_names=index.attribute_names,
        attributes=index.attributes,
        map_shape=backbone.map_shape,
        dtype=store.dtype,
        samples_per_shard=choose_samples_per_shard(
            len(index.clips),
            sample_bytes,
            shard_bytes=store.shard_bytes,
            min_shards=store.min_shards,
        ),
    )
