"""The stores that the settings ask `extract` for: of which clips, by which backbone, how stored."""

from __future__ import annotations

import math
from typing import NamedTuple

from dsts_pipeline.base.settings import BackboneSettings, DatasetSettings, StoreSettings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.build import choose_backbone
from dsts_pipeline.extract.forward import Computing, choose_computing, choose_device
from dsts_pipeline.extract.views import ViewPlan, plan_views
from dsts_pipeline.feature_store.plan import StorePlan, choose_samples_per_shard
from dsts_pipeline.feature_store.stored_types import STORED_DTYPES


class ExtractionWork(NamedTuple):
    """Clips, what makes their maps, and the stores that will hold them.

    Attributes:
        views: The rows of the stores, and how their frames are decoded.
        plans: A store per tap of the backbone, the main one first; their shards hold the same rows.
    """

    clips: ClipIndex
    backbone: Backbone
    views: ViewPlan
    plans: list[StorePlan]

    @property
    def plan(self) -> StorePlan:
        """The store of the main tap."""
        return self.plans[0]


def prepare_work(
    index: ClipIndex, chosen: BackboneSettings, dataset: DatasetSettings, store: StoreSettings
) -> ExtractionWork:
    """Load the backbone and plan the stores of the clips of `index`.

    Raises:
        CheckpointError, DataError: There are no sound weights, or the clips can't be stored.
    """
    backbone = choose_backbone(chosen)
    backbone.to(choose_device(chosen.device))
    views = plan_views(index, backbone, chosen, dataset)
    computing = choose_computing(chosen)
    plans = [plan_store(index, backbone, tap, views, computing, store) for tap in backbone.taps]
    return ExtractionWork(index, backbone, views, plans)


def plan_store(
    index: ClipIndex,
    backbone: Backbone,
    tap: str,
    views: ViewPlan,
    computing: Computing,
    store: StoreSettings,
) -> StorePlan:
    """The store of the maps that leave `backbone` at `tap`."""
    largest = max(math.prod(shape) for shape in backbone.map_shapes.values())
    sample_bytes = largest * STORED_DTYPES[store.dtype].itemsize
    return StorePlan(
        {"backbone": backbone.describe(tap)} | views.describe() | computing.describe(),
        clips=views.samples,
        class_names=index.class_names,
        attribute_names=index.attribute_names,
        attributes=index.attributes,
        map_shape=backbone.map_shapes[tap],
        dtype=store.dtype,
        codec=store.codec,
        zstd_level=store.zstd_level,
        on_overflow=store.on_overflow,
        frames=views.frames,
        samples_per_shard=choose_samples_per_shard(
            len(views.rows),
            sample_bytes,
            shard_bytes=store.shard_bytes,
            min_shards=store.min_shards,
        ),
    )
