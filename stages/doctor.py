"""Before a run: whether this machine can run the settings, and what the settings are.

Torch and what needs it are imported when a check asks for it: those before it are told at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsts_pipeline.base.checkup import (
    Finding,
    check_space,
    check_versions,
    examine,
    read_constraints,
)
from dsts_pipeline.base.errors import DataError, UserError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.variants import settings_as_yaml
from dsts_pipeline.clips.checkup import check_data, check_decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.checkup import check_devices, check_weights
from stages import common

if TYPE_CHECKING:
    from dsts_pipeline.feature_store.planning import ExtractionWork

_FILES = {"video_folder", "train_file", "test_file", "class_file"}
_BATCH_SIZE = 2  # two batches are timed: four clips, even where a forward pass takes long


class NotReady(UserError):
    """At least one check failed."""

    exit_status = 1


def run(settings: Settings) -> None:
    """Print the findings.

    Raises:
        NotReady: Something has to be done first.
    """
    num_failed = 0
    for finding in examine_all(settings):
        console.print("[green]ok[/]" if finding.is_ok else "[red]do[/]", end="")
        console.print(f"  {finding.topic:<9} {finding.text}", markup=False, soft_wrap=True)
        num_failed += not finding.is_ok
    if num_failed:
        raise NotReady(f"{num_failed} of these checks failed; do what they say and run it again")


def examine_all(settings: Settings) -> Iterator[Finding]:
    """All checks in turn; space and time only where clips and backbone are known."""
    dataset = settings.dataset
    backbone = settings.backbone
    num_clips = [0]
    map_shape = list[int]()

    def data() -> str:
        if render := dataset.render:
            num_clips[0] = render.num_train + render.num_test
            return f"{num_clips[0]:,} clips, which `python cli.py prepare` renders"
        text, num_clips[0] = check_data(
            dataset.format,
            dataset.root,
            files=dataset.model_dump(include=_FILES),
            allow_outside_root=dataset.allow_outside_root,
            test_fraction=dataset.test_fraction,
            max_problem_fraction=dataset.max_problem_fraction,
        )
        return text

    def weights() -> str:
        text, shape = check_weights(
            backbone.name,
            backbone.weights,
            num_frames=backbone.num_frames,
            size_px=backbone.size_px,
        )
        map_shape.extend(shape)
        return text

    yield examine("versions", lambda: check_versions(tested=read_constraints("constraints.txt")))
    yield examine("decoder", lambda: check_decoder(backbone.decoder))
    yield examine("devices", lambda: check_devices(backbone.device))
    yield examine("data", data)
    yield examine("weights", weights)
    if num_clips[0] and map_shape:
        yield examine("space", lambda: _judge_space(settings, tuple(map_shape), num_clips[0]))
        yield examine("time", lambda: _describe_time(settings))


# ---- what an extraction still costs, in bytes and in time --------------------------------------


def _judge_space(settings: Settings, map_shape: tuple[int, ...], num_clips: int) -> str:
    """Compare what the store still takes with what is free.

    Before `prepare`, that is `num_clips` maps; after it, exactly the pending shards.

    Raises:
        UserError: Too little is free.
    """
    from dsts_pipeline.feature_store.space import survey_store
    from dsts_pipeline.feature_store.stored_maps import STORED_DTYPES

    work = _plan_work(settings)
    if work is None:
        needed = num_clips * math.prod(map_shape) * STORED_DTYPES[settings.store.dtype].itemsize
    else:
        survey = survey_store(settings.store.root, work.plan)
        needed = survey.pending_bytes + survey.margin_bytes
    return check_space(settings.store.root, needed)


def _describe_time(settings: Settings) -> str:
    """Time of the extraction, measured on four pending clips; unknown before `prepare`."""
    from dsts_pipeline.extract.forecast import forecast_extraction
    from dsts_pipeline.extract.planning import choose_views
    from dsts_pipeline.feature_store.space import survey_store

    work = _plan_work(settings)
    if work is None:
        return "unknown before `python cli.py prepare`"
    pending = survey_store(settings.store.root, work.plan).pending
    positions = [position for shard in pending for position in work.plan.positions_of(shard)]
    if not positions:
        return "the store is finished: nothing to extract"
    forecast = forecast_extraction(
        work.clips,
        work.backbone,
        positions,
        views=choose_views(settings.backbone, settings.dataset),
        decoder=settings.backbone.decoder,
        num_decode_workers=settings.backbone.num_decode_workers,
        batch_size=_BATCH_SIZE,
    )
    seconds = forecast.seconds_per_clip * len(positions)
    return (
        f"about {seconds / 60:,.1f} min for {len(positions):,} pending clips, measured on "
        f"{forecast.num_clips} of them ({1000 * forecast.seconds_per_clip:.0f} ms a clip)"
    )


def _plan_work(settings: Settings) -> ExtractionWork | None:
    """Clips, backbone and store, if `prepare` has written the clip index of this data set."""
    from dsts_pipeline.feature_store.planning import prepare_work

    try:
        index = ClipIndex.load(common.CLIP_INDEX)
    except DataError:
        return None
    if (index.dataset, index.root) != (settings.dataset.name, settings.dataset.root):
        return None
    return prepare_work(index, settings.backbone, settings.dataset, settings.store)


# ---- show --------------------------------------------------------------------------------------


def show(settings: Settings) -> None:
    """Print all settings as YAML: what --params would need to hold for the same run."""
    sys.stdout.write(settings_as_yaml(settings))
