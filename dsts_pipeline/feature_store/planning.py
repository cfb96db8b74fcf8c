"""The stores that the settings ask `extract` for: of which clips, by which backbone, how stored."""

from __future__ import annotations

from typing import NamedTuple

from dsts_pipeline.base.settings import BackboneSettings, DatasetSettings, StoreSettings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.build import choose_backbone
from dsts_pipeline.extract.forward import choose_computing, choose_device
from dsts_pipeline.extract.views import ViewPlan, plan_views
from dsts_pipeline.feature_store.plan import StorePlan, storage_options


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
    """Load the backbone and plan the stores of the clips of `index`, one for each of its taps.

    Raises:
        CheckpointError, DataError: There are no sound weights, or the clips can't be stored.
    """
    backbone = choose_backbone(chosen)
    backbone.to(choose_device(chosen.device))
    views = plan_views(index, backbone, chosen, dataset)
    made_of = views.describe() | choose_computing(chosen).describe()
    plans = [
        StorePlan(
            {"backbone": backbone.describe(tap)} | made_of,
            clips=views.samples,
            class_names=index.class_names,
            attribute_names=index.attribute_names,
            attributes=index.attributes,
            map_shape=backbone.map_shapes[tap],
            frames=views.frames,
            groups=[index.clips[row.clip].group for row in views.rows],
            **storage_options(store, len(views.rows), backbone.map_shapes.values()),
        )
        for tap in backbone.taps
    ]
    return ExtractionWork(index, backbone, views, plans)
