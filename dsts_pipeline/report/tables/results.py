"""The run's own tables: heads, confused pairs, classes, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.tables.table import Cell, Row, Table, cells
from dsts_pipeline.report.wording import (
    bounds,
    class_rows,
    pair_rows,
    percent,
    signed_points,
)


def result_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Tables by name; one that the run has no rows for is left out."""
    tables = (_results(inputs), _pairs(inputs), _classes(inputs), _failures(inputs))
    return {table.name: table for table in tables if table.rows}


def _results(inputs: ReportInputs) -> Table:
    interval = inputs.metrics.get("interval")
    made = f" ({interval['method']}, {interval['num_resamples']:,} resamples)" if interval else ""
    return Table(
        name="results",
        caption=f"Results in percent, intervals in brackets{made}. The last column is the paired "
        "difference in top-1 on the same clips, in percentage points. Parameters are those of the "
        "head alone.",
        columns=("head", "top-1", "top-5", "class-wise", "parameters", "against baseline"),
        rows=tuple(
            Row(
                cells(
                    head["title"],
                    with_interval(head, "top1"),
                    with_interval(head, "top5"),
                    with_interval(head, "class_wise"),
                    f"{head['num_parameters']:,}",
                    difference(head.get("versus_baseline")),
                ),
                emphasised=name == inputs.main_head,
            )
            for name, head in inputs.heads
        ),
    )


def with_interval(figures: Mapping[str, Any], key: str) -> Cell:
    """A fraction in percent with its interval, where it has one; empty if there is none."""
    if figures.get(key) is None:
        return Cell("")
    return Cell(percent(figures[key]), bounds(figures, key) if f"{key}_low" in figures else "")


def difference(versus: Mapping[str, Any] | None) -> Cell:
    """A paired difference in points with its interval."""
    if not versus:
        return Cell("–")
    value, low, high = (signed_points(versus[f"difference{end}"]) for end in ("", "_low", "_high"))
    return Cell(value, f"{low} to {high}")


def _pairs(inputs: ReportInputs) -> Table:
    pairs = pair_rows(inputs)
    beside = bool(pairs) and pairs[0]["baseline"] is not None
    differ = ("they differ in",) if inputs.attributes else ()
    columns = ("first", "second", *differ, "1st as 2nd", "2nd as 1st", "share, %")
    title = inputs.metrics["heads"][inputs.main_head]["title"]
    return Table(
        name="pairs",
        caption=f"The pairs of classes that {title} confuses most: clips of the first taken for "
        "the second, of the second for the first, and both as a share of the clips of the two "
        "classes"
        + ("; beside it, how often the baseline confuses the same pair." if beside else "."),
        columns=(*columns, "baseline") if beside else columns,
        rows=tuple(
            Row(
                cells(
                    pair["first"],
                    pair["second"],
                    *((pair["differs"],) if inputs.attributes else ()),
                    str(pair["forth"]),
                    str(pair["back"]),
                    pair["share"],
                    *((str(pair["baseline"]),) if beside else ()),
                )
            )
            for pair in pairs
        ),
        num_names=2 + len(differ),
        kind="names",
    )


def _classes(inputs: ReportInputs) -> Table:
    heads = tuple(head["title"] for _, head in inputs.heads)
    return Table(
        name="classes",
        caption="Percent of each class’s clips that each head gets right.",
        columns=("class", "no.", "clips", *heads),
        rows=tuple(
            Row(
                cells(
                    row["name"],
                    str(row["number"]),
                    str(row["count"]),
                    *(value or "no clips" for value in row["accuracies"]),
                )
            )
            for row in class_rows(inputs)
        ),
        kind="dense",
    )


def _failures(inputs: ReportInputs) -> Table:
    return Table(
        name="failures",
        caption=f"{len(inputs.failures)} clips of all splits could not be used. None was replaced "
        "by another clip.",
        columns=("clip", "split", "lost at", "reason"),
        rows=tuple(
            Row(cells(failure.clip_id, failure.split, failure.stage, failure.reason))
            for failure in inputs.failures
        ),
        num_names=4,
        kind="dense",
    )
