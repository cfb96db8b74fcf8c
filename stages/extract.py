"""Cache the frozen backbone's map of every clip in the index, or tell what that would take."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from typing import Literal

from rich.console import Console
from rich.table import Table

from dsts_pipeline.base.files import format_bytes, read_json, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.cluster import Tools, extract_on_cluster
from dsts_pipeline.extract.progress import (
    ClipFailure,
    ExtractionSummary,
    check_failures,
    format_duration,
    summarize,
)
from dsts_pipeline.extract.runner import extract_features, forecast_extraction
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.housekeeping import find_earlier_maps
from dsts_pipeline.feature_store.opening import record_store
from dsts_pipeline.feature_store.planning import ExtractionWork, prepare_work
from dsts_pipeline.feature_store.writer import StoreSurvey, require_space, survey_store
from stages import common


def run(
    settings: Settings,
    engine: Literal["processes", "ray"] = "processes",
    num_workers: int | None = None,
    earlier: str | None = None,
) -> None:
    """Finish the store of these settings and write its manifest to outputs/features.json.

    What may differ between two extractions of the same bytes stays in the store's own manifest.

    Args:
        num_workers: With the engine "ray": backbones at work.
        earlier: A store made under the former rule of frames; what is sound of it is copied.

    Raises:
        CheckpointError, DataError, StoreError: See the parts; the finished shards stay.
    """
    chosen = settings.backbone
    work = _prepare_work(settings)
    known = None
    if earlier is not None:
        known = find_earlier_maps(open_store(earlier), work.views, work.plan)
        num_rows = len(work.plan.samples)
        console.print(f"{earlier}: {len(known.rows):,} of {num_rows:,} maps are taken over")
    for plan in work.plans:
        require_space(survey_store(settings.store.root, plan))

    with ExitStack() as stack:
        writers = [
            stack.enter_context(StoreWriter(settings.store.root, plan)) for plan in work.plans
        ]
        if engine == "ray":
            pending = {shard for each in writers for shard in each.pending_shards()}
            summary = _extract_by_ray(settings, work, pending, num_workers)
        else:
            summary = extract_features(work.views, work.backbone, writers, chosen, earlier=known)
        sections = {
            "backbone": chosen.model_dump(mode="json"),
            "dataset": settings.dataset.model_dump(mode="json", include={"flip", "flip_pairs"}),
        }
        manifests = [read_json(w.finish(collect_provenance(sections))) for w in writers]

    manifest = manifests[0]
    # Also those of earlier runs that were interrupted, or had another limit.
    failures = [ClipFailure(failure["id"], failure["reason"]) for failure in manifest["failures"]]
    check_failures(failures, len(work.clips.clips), max_failed_fraction=chosen.max_failed_fraction)
    others = {tap: str(w.path) for tap, w in zip(work.backbone.taps[1:], writers[1:], strict=True)}
    write_json(common.FEATURES, record_store(manifest, writers[0].path, others))
    console.print(summarize(str(writers[0].path), manifest["counts"], summary))


def _prepare_work(settings: Settings) -> ExtractionWork:
    """Load clips and backbone, plan the stores.

    Raises:
        CheckpointError, DataError: There is no clip index, or no sound weights.
    """
    index = ClipIndex.load(common.CLIP_INDEX)
    return prepare_work(index, settings.backbone, settings.dataset, settings.store)


# ---- with --engine ray: the same store by the workers of a Ray cluster --------------------------


def _extract_by_ray(
    settings: Settings, work: ExtractionWork, pending: Collection[int], num_workers: int | None
) -> ExtractionSummary:
    """Write the shards of `work.plan` that are pending."""
    return extract_on_cluster(
        partial(make_tools, settings),
        work.views,
        work.plan.positions_of,
        sum(len(work.plan.positions_of(shard)) for shard in pending),
        settings.backbone,
        num_workers,
    )


def make_tools(settings: Settings) -> Tools:
    """What one worker of the cluster works with, made in its own process.

    Raises:
        CheckpointError, DataError, StoreError: It can't be made there.
    """
    work = _prepare_work(settings)
    return Tools(
        plan=work.views,
        backbone=work.backbone,
        writers=[StoreWriter(settings.store.root, plan) for plan in work.plans],
        settings=settings.backbone,
    )


# ---- with --dry-run: size, space and time, measured on a few clips; writes nothing -------------

DRY_RUN_SECONDS = 20.0  # so that the command, imports and all, ends within half a minute


def dry_run(settings: Settings) -> None:
    """Print a table about the store of these settings, after about `DRY_RUN_SECONDS` at most.

    Raises:
        CheckpointError, DataError: See the parts.
        StoreError: What is pending does not fit on the disk; told after the table.
    """
    began = time.monotonic()
    chosen = settings.backbone
    work = _prepare_work(settings)
    survey = survey_store(settings.store.root, work.plan)
    positions = [position for shard in survey.pending for position in work.plan.positions_of(shard)]
    table = _describe(work.plan, survey)
    table.add_row("clips pending", f"{len(positions):,} of {work.plan.num_clips:,}")
    if positions:
        forecast = forecast_extraction(
            work.views,
            work.backbone,
            positions,
            num_decode_workers=chosen.num_decode_workers,
            batch_size=chosen.batch_size,
            limit_seconds=max(1.0, DRY_RUN_SECONDS - (time.monotonic() - began)),
        )
        seconds = forecast.seconds_per_clip * len(positions)
        timed = f"{forecast.num_clips} clip{'s' if forecast.num_clips > 1 else ''}"
        if forecast.num_decoded != forecast.num_clips:
            timed += f" ({forecast.num_decoded} decoded)"
        workers = str(forecast.num_decode_workers)
        if chosen.num_decode_workers == "auto":
            workers = f"auto, here {workers}"
        table.add_row(
            "time",
            f"about {format_duration(seconds)}, measured on {timed}: decoding "
            f"{1000 * forecast.decode_seconds:.1f} ms a clip (num_decode_workers = {workers}), "
            f"backbone {1000 * forecast.forward_seconds:.1f} ms",
        )
    Console(highlight=False, markup=False).print(table)
    require_space(survey)


def _describe(plan: StorePlan, survey: StoreSurvey) -> Table:
    table = Table(show_header=False)
    at_most = "at most " if survey.is_compressed and survey.pending else ""
    codec = f", zstd {plan.zstd_level}" if plan.codec == "zstd" else ""
    state = "" if survey.path.exists() else " (not there yet)"
    table.add_row("store", f"{survey.path}{state}")
    table.add_row("maps", f"{plan.num_clips:,} of {' x '.join(map(str, plan.map_shape))}")
    table.add_row("stored as", plan.dtype + codec)
    table.add_row("shards", f"{survey.num_shards:,}, {len(survey.pending):,} pending")
    table.add_row("size", f"{at_most}{format_bytes(survey.total_bytes)}")
    table.add_row("already there", format_bytes(survey.done_bytes))
    table.add_row("to be written", f"{at_most}{format_bytes(survey.pending_bytes)}")
    table.add_row("free", format_bytes(survey.free_bytes))
    return table
