"""What `extract` would do: size, space and time, measured on a few clips; writes nothing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.forecast import forecast_extraction
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.space import (
    StoreSurvey,
    format_bytes,
    require_space,
    survey_store,
)
from stages.extract_options import choose_views
from stages.store_plan import prepare_work


def run(settings: Settings) -> None:
    """Print a table about the store of these settings.

    Raises:
        CheckpointError, DataError: See the parts.
        StoreError: What is pending does not fit on the disk; told after the table.
    """
    chosen, (index, backbone, plan) = settings.backbone, prepare_work(settings)
    survey = survey_store(settings.store.root, plan)
    positions = [position for shard in survey.pending for position in plan.positions_of(shard)]
    table = _describe(plan, survey)
    table.add_row("clips pending", f"{len(positions):,} of {plan.num_clips:,}")
    if positions:
        forecast = forecast_extraction(
            index,
            backbone,
            positions,
            views=choose_views(settings),
            decoder=chosen.decoder,
            num_decode_workers=chosen.num_decode_workers,
            batch_size=chosen.batch_size,
        )
        seconds = forecast.seconds_per_clip * len(positions)
        table.add_row(
            "time",
            f"about {_format_seconds(seconds)}, measured on {forecast.num_clips} clips: decoding "
            f"{1000 * forecast.decode_seconds:.1f} ms a clip (num_decode_workers = "
            f"{chosen.num_decode_workers}), backbone {1000 * forecast.forward_seconds:.1f} ms",
        )
    Console(highlight=False).print(table)
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


def _format_seconds(seconds: float) -> str:
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"
