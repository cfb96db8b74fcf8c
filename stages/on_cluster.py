"""`extract --engine ray`: the same store by the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.engines.actors import Tools
from dsts_pipeline.extract.engines.cluster import ClusterOptions, extract_on_cluster
from dsts_pipeline.extract.frames.augmentation import import_transforms
from dsts_pipeline.extract.runner import ExtractionSummary
from dsts_pipeline.feature_store import StoreWriter
from stages.extract_options import choose_computing, plan_views
from stages.store_plan import Work, plan_taps, prepare_work


def make_tools(settings: Settings) -> Tools:
    """What one worker works with, made in its own process.

    Raises:
        CheckpointError, DataError, StoreError: It can't be made there.
    """
    work = prepare_work(settings)
    return Tools(
        plan=plan_views(settings, work.clip_index, work.backbone),
        backbone=work.backbone,
        writers=[StoreWriter(settings.store.root, each) for each in plan_taps(settings, work)],
        computing=choose_computing(settings),
        max_failed_fraction=settings.backbone.max_failed_fraction,
    )


def extract_by_ray(
    settings: Settings, work: Work, pending: Collection[int], num_workers: int | None
) -> ExtractionSummary:
    """Write the shards of `work.plan` that are pending."""
    chosen, rows = settings.backbone, plan_views(settings, work.clip_index, work.backbone)
    return extract_on_cluster(
        partial(make_tools, settings),
        rows,
        work.plan.positions_of,
        sum(len(work.plan.positions_of(shard)) for shard in pending),
        ClusterOptions(
            num_workers=num_workers,
            num_decoders=max(1, chosen.num_decode_workers),
            clip_timeout_seconds=chosen.clip_timeout_seconds,
            warm_up=import_transforms if rows.views.augmentation.is_on else None,
        ),
    )
