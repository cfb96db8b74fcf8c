"""What an extraction still costs, in bytes and in time, as far as it is known before it starts."""

from __future__ import annotations

import math

from dsts_pipeline.base.checkup import check_space
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.forecast import forecast_extraction
from dsts_pipeline.feature_store.space import survey_store
from dsts_pipeline.feature_store.stored_maps import STORED_DTYPES
from stages import places
from stages.extract_options import choose_views
from stages.store_plan import Work, prepare_work

_BATCH_SIZE = 2  # two batches are timed: four clips, even where a forward pass takes long


def plan_work(settings: Settings) -> Work | None:
    """Clips, backbone and store, if `prepare` has written the clip index of this data set."""
    try:
        index = ClipIndex.load(places.CLIP_INDEX)
    except DataError:
        return None
    if (index.dataset, index.root) != (settings.dataset.name, settings.dataset.root):
        return None
    return prepare_work(settings)


def judge_space(settings: Settings, map_shape: tuple[int, ...], num_clips: int) -> str:
    """Compare what the store still takes with what is free.

    Before `prepare`, that is `num_clips` maps; after it, exactly the pending shards.

    Raises:
        UserError: Too little is free.
    """
    work = plan_work(settings)
    if work is None:
        needed = num_clips * math.prod(map_shape) * STORED_DTYPES[settings.store.dtype].itemsize
    else:
        survey = survey_store(settings.store.root, work.plan)
        needed = survey.pending_bytes + survey.margin_bytes
    return check_space(settings.store.root, needed)


def describe_time(settings: Settings) -> str:
    """Time of the extraction, measured on four pending clips; unknown before `prepare`."""
    work = plan_work(settings)
    if work is None:
        return "unknown before `python cli.py prepare`"
    pending = survey_store(settings.store.root, work.plan).pending
    positions = [position for shard in pending for position in work.plan.positions_of(shard)]
    if not positions:
        return "the store is finished: nothing to extract"
    forecast = forecast_extraction(
        work.clip_index,
        work.backbone,
        positions,
        views=choose_views(settings),
        decoder=settings.backbone.decoder,
        num_decode_workers=settings.backbone.num_decode_workers,
        batch_size=_BATCH_SIZE,
    )
    seconds = forecast.seconds_per_clip * len(positions)
    return (
        f"about {seconds / 60:,.1f} min for {len(positions):,} pending clips, measured on "
        f"{forecast.num_clips} of them ({1000 * forecast.seconds_per_clip:.0f} ms a clip)"
    )
