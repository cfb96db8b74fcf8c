"""What checks and housekeeping found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.feature_store.checks.housekeeping import StoreEntry
from dsts_pipeline.feature_store.checks.statistics import ChannelStatistics
from dsts_pipeline.feature_store.checks.values import ValueReport
from dsts_pipeline.feature_store.checks.verdict import Verdict

_NUM_LISTED = 20


def verdict_table(verdict: Verdict) -> Table:
    """One row per question that was asked."""
    table = Table()
    table.add_column("fast check" if verdict.fast else "full check")
    table.add_column(Text(verdict.location))
    files = f"{verdict.num_files:,} files, {format_bytes(verdict.num_bytes)}"
    how = "presence, sizes" + ("" if verdict.fast else ", digests")
    table.add_row(how, Text(f"{files}: {_tell(verdict.problems, 'sound', 'damaged')}"))
    if verdict.values is not None:
        for question, answer in _describe_values(verdict, verdict.values):
            table.add_row(question, Text(answer))
    for number, damage in enumerate(verdict.damage[:_NUM_LISTED]):
        table.add_row("" if number else "[red]damage", Text(damage))
    if len(verdict.damage) > _NUM_LISTED:
        table.add_row("", Text(f"and {len(verdict.damage) - _NUM_LISTED:,} more"))
    for number, warning in enumerate(verdict.warnings[:_NUM_LISTED]):
        table.add_row("" if number else "[yellow]warnings", Text(warning))
    return table


def _tell(found: Sequence[object], good: str, bad: str) -> str:
    return f"{len(found):,} {bad}" if found else f"all {good}"


def _describe_values(verdict: Verdict, values: ValueReport) -> list[tuple[str, str]]:
    rows = [
        (
            "checksums, NaN, Inf",
            f"{verdict.num_maps:,} maps: {_tell(values.damaged, 'sound', 'damaged')}",
        ),
        ("maps of zeros", f"{len(values.zero):,}" if values.zero else "none"),
        ("channels", _describe_channels(values.statistics)),
    ]
    drift = values.drift
    if drift is not None:
        asked = f"{drift.num_shards} shards, {drift.num_channels} channels, "
        asked += f"{drift.num_shuffles} shuffles" + (" in classes" if drift.within_classes else "")
        found = drift.note or f"{asked}: {_tell(drift.flagged, 'alike', 'beyond chance')}"
        rows.append(("drift", found))
    return rows


def _describe_channels(statistics: ChannelStatistics) -> str:
    if not statistics.num_maps:
        return "no map could be read"
    parts = [
        f"{name} {np.min(figure):.3g} to {np.max(figure):.3g}"
        for name, figure in (("mean", statistics.mean), ("std", statistics.std))
    ]
    share = float(statistics.zero_share.mean())
    return f"{', '.join(parts)}, {share:.1%} zeros, {len(statistics.dead)} dead"


def stores_table(entries: Sequence[StoreEntry], referred_by: Mapping[Path, Sequence[str]]) -> Table:
    """One row per folder below the store root."""
    table = Table()
    for name in ("store", "state", "maps", "size", "type", "backbone", "data set", "in use by"):
        table.add_column(name, justify="right" if name in ("maps", "size") else "left")
    for entry in entries:
        cells = (
            str(entry.path),
            entry.state,
            "" if entry.num_maps is None else f"{entry.num_maps:,}",
            format_bytes(entry.num_bytes),
            entry.stored_type,
            entry.backbone,
            entry.dataset,
            ", ".join(referred_by.get(entry.path.resolve(), ())) or "nothing",
        )
        table.add_row(*map(Text, cells))
    return table
