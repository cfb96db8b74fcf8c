"""Cache the frozen backbone's map of every clip in the index, or tell what that would take."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
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
from dsts_pipeline.extract.runner import Forecast, extract_features, forecast_extraction
from dsts_pipeline.extract.taps import average_cells, pool_more
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.housekeeping import find_earlier_maps
from dsts_pipeline.feature_store.opening import record_store
from dsts_pipeline.feature_store.planning import ExtractionWork, prepare_work
from dsts_pipeline.feature_store.stored_types import encode_map
from dsts_pipeline.feature_store.writer import (
    StoreSurvey,
    require_space,
    store_bytes,
    survey_store,
)
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

DRY_RUN_SECONDS = 25.0  # so that the command, imports and all, ends within half a minute
_WIDTH = 118


def dry_run(settings: Settings, began: float | None = None) -> None:
    """Print a table about the store of these settings and one about what smaller ones would take.

    Args:
        began: When the command began, by `time.monotonic`: from then on it may take
            `DRY_RUN_SECONDS`; None: now.

    Raises:
        CheckpointError, DataError: See the parts.
        StoreError: What is pending does not fit on the disk; told after the tables.
    """
    end = DRY_RUN_SECONDS + (time.monotonic() if began is None else began)
    chosen = settings.backbone
    work = _prepare_work(settings)
    survey = survey_store(settings.store.root, work.plan)
    positions = [position for shard in survey.pending for position in work.plan.positions_of(shard)]
    ways = list_ways(work)
    table = _describe(work.plan, survey)
    table.add_row("clips pending", f"{len(positions):,} of {work.plan.num_clips:,}")
    forecast = None
    if positions:
        forecast = forecast_extraction(
            work.views,
            work.backbone,
            positions,
            num_decode_workers=chosen.num_decode_workers,
            batch_size=chosen.batch_size,
            limit_seconds=max(1.0, end - time.monotonic()),
        )
        workers = str(forecast.num_decode_workers)
        if chosen.num_decode_workers == "auto":
            workers = f"auto, here {workers}"
        table.add_row("time", _describe_time(forecast, len(positions), workers))
    print_table = Console(highlight=False, markup=False).print
    print_table(table)
    wide = Console(highlight=False, markup=False, width=max(_WIDTH, Console().width))
    wide.print(_describe_ways(ways, survey, forecast, work.plan.num_clips))
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


def _describe_time(forecast: Forecast, num_pending: int, num_workers: str) -> str:
    seconds = forecast.seconds_per_clip * num_pending
    decoding = (
        f"decoding {1000 * forecast.decode_seconds:.1f} ms a clip (num_decode_workers = "
        f"{num_workers})"
    )
    backbone = f"{1000 * forecast.forward_seconds:.1f} ms"
    if forecast.is_lower_bound:
        share = max(forecast.share_passed, 0.001)
        if_even = format_duration(forecast.forward_seconds / share * num_pending)
        return (
            f"more than {format_duration(seconds)}: one clip was not through the backbone after "
            f"{backbone}, and had come to {forecast.share_passed:.0%} of its weights; {if_even} if "
            f"the rest goes as fast; {decoding}"
        )
    timed = f"{forecast.num_clips} clip{'s' if forecast.num_clips > 1 else ''}"
    if forecast.num_decoded != forecast.num_clips:
        timed += f" ({forecast.num_decoded} decoded)"
    return f"about {format_duration(seconds)}, measured on {timed}: {decoding}, backbone {backbone}"


# ---- what the same maps would take, stored smaller ---------------------------------------------


class Way(NamedTuple):
    """One way to store the maps.

    Attributes:
        name: "as it is", "int8", "pooled 2x2" or "both".
        to_set: The settings that choose it, as the command line takes them; empty: none.
        num_bytes: Of the whole store, of all taps' stores; None: the maps can't be pooled so.
        store_seconds: Of pooling and encoding one clip's maps here, measured.
        reason: Why there is no such way.
    """

    name: str
    to_set: str
    num_bytes: int | None = None
    store_seconds: float = 0.0
    reason: str = ""


def list_ways(work: ExtractionWork) -> list[Way]:
    """As the settings have it, in int8, with two rows and two columns averaged, and both.

    Ways that the settings have already are left out.
    """
    plan = work.plan
    shapes = [each.map_shape for each in work.plans]
    pooled = [(c, t, h // 2, w // 2) for c, t, h, w in shapes]
    taps = ",".join(pool_more(tap, (1, 2, 2)) for tap in work.backbone.taps)
    set_pooled = f"'backbone.taps=[{taps}]'"
    ways = [_measure_way("as it is", "", work.plans, shapes, plan.dtype)]
    if plan.dtype != "int8":
        ways.append(_measure_way("int8", "store.dtype=int8", work.plans, shapes, "int8"))
    odd = [shape for shape in shapes if shape[2] % 2 or shape[3] % 2]
    if odd:
        sides = " x ".join(map(str, odd[0][2:]))
        return [*ways, Way("pooled 2x2", "", reason=f"no: {sides} positions are no multiple of 2")]
    ways.append(_measure_way("pooled 2x2", set_pooled, work.plans, pooled, plan.dtype))
    if plan.dtype != "int8":
        both = f"store.dtype=int8 {set_pooled}"
        ways.append(_measure_way("both", both, work.plans, pooled, "int8"))
    return ways


def _measure_way(
    name: str,
    to_set: str,
    plans: Sequence[StorePlan],
    shapes: Sequence[tuple[int, int, int, int]],
    dtype: str,
) -> Way:
    """Bytes by count, and the time that a map of random numbers takes to be stored so."""
    num_bytes = 0
    seconds = 0.0
    for plan, shape in zip(plans, shapes, strict=True):
        num_bytes += store_bytes(plan, shape, dtype)
        values = np.random.default_rng(0).standard_normal(plan.map_shape, np.float32)
        cell = tuple(old // new for old, new in zip(plan.map_shape[1:], shape[1:], strict=True))
        started = time.monotonic()
        encode_map(average_cells(torch.from_numpy(values), cell).numpy(), dtype)
        seconds += time.monotonic() - started
    return Way(name, to_set, num_bytes, seconds)


def _describe_ways(
    ways: Sequence[Way], survey: StoreSurvey, forecast: Forecast | None, num_maps: int
) -> Table:
    """A row for each way; times are those of the whole store, from nothing."""
    free = format_bytes(survey.free_bytes)
    table = Table(title=f"The whole store, {num_maps:,} maps, with {free} free")
    for column in ("way", "size", "fits", "time"):
        table.add_column(column, no_wrap=True)
    table.add_column("set, by -S or --set", overflow="fold")
    at_most = "at most " if survey.is_compressed else ""
    for way in ways:
        if way.num_bytes is None:
            table.add_row(way.name, "", "", "", way.reason)
            continue
        left = survey.free_bytes + (survey.done_bytes if not way.to_set else 0)
        fits = "yes" if way.num_bytes <= left else f"{way.num_bytes / max(1, left):.1f} x the free"
        hours = ""
        if forecast is not None:
            how = "more than" if forecast.is_lower_bound else "about"
            seconds = (forecast.seconds_per_clip + way.store_seconds) * num_maps
            hours = f"{how} {format_duration(seconds)}"
        size = f"{at_most}{format_bytes(way.num_bytes)}"
        table.add_row(way.name, size, fits, hours, way.to_set)
    table.caption = "time: decoding, backbone, pooling and encoding; not writing to the disk"
    return table
