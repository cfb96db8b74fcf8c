"""Tables over several runs: figures, paired differences, classes that changed, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsts_pipeline.metrics import Bootstrap, compare_predictions
from dsts_pipeline.report.origins import flatten
from dsts_pipeline.report.runs.inputs import Run
from dsts_pipeline.report.tables.results import difference, with_interval
from dsts_pipeline.report.tables.table import Row, Table, cells
from dsts_pipeline.report.wording import p_value, percent, signed_points

NUM_CLASSES_SHOWN = 15


def comparison_tables(runs: Sequence[Run], bootstrap: Bootstrap) -> dict[str, Table]:
    """Tables by name; one without rows is left out."""
    first, others = runs[0], runs[1:]
    apart = {run.name: compare_predictions(run.answers, first.answers, bootstrap) for run in others}
    tables = [_figures(runs), _differences(first, apart), _settings(runs)]
    for number, run in enumerate(others, start=1):
        tables.append(_classes(first, run, apart[run.name], number))
    return {table.name: table for table in tables if table.rows}


def _figures(runs: Sequence[Run]) -> Table:
    rows = [
        Row(
            cells(
                run.name,
                head["title"],
                *(with_interval(head, key) for key in ("top1", "top5", "class_wise")),
                f"{head['num_parameters']:,}",
            ),
            emphasised=name == run.inputs.main_head,
        )
        for run in runs
        for name, head in run.inputs.heads
    ]
    return Table(
        name="figures",
        caption="Every head of every run, percent, intervals in brackets. The bold ones are "
        "compared below.",
        columns=("run", "head", "top-1", "top-5", "class-wise", "parameters"),
        rows=tuple(rows),
        num_names=2,
    )


def _differences(first: Run, apart: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        Row(
            cells(
                name,
                *(difference(found[key]) for key in ("top1", "top5", "class_wise")),
                str(found["only_first_right"]),
                str(found["only_second_right"]),
                p_value(found["mcnemar"]["p"]),
            )
        )
        for name, found in apart.items()
    ]
    return Table(
        name="differences",
        caption=f"Each run minus {first.name} on the same clips: percentage points with paired "
        "bootstrap intervals, clips that one of the two alone has right, and McNemar’s p of "
        "top-1. They cover the choice of clips, not what another seed of a training would give.",
        columns=(
            "run",
            "top-1",
            "top-5",
            "class-wise",
            "it alone right",
            f"{first.name} alone",
            "p",
        ),
        rows=tuple(rows),
    )


def _classes(first: Run, run: Run, found: Mapping[str, Any], number: int) -> Table:
    columns = found["per_class"]
    changed = [k for k, value in enumerate(columns["difference"]) if value]
    changed.sort(key=lambda k: -abs(columns["difference"][k]))
    rows = [
        Row(
            cells(
                first.inputs.class_names[k],
                str(columns["clips"][k]),
                percent(columns["second"][k] / columns["clips"][k]),
                percent(columns["first"][k] / columns["clips"][k]),
                signed_points(columns["difference"][k]),
                p_value(columns["p"][k]),
                p_value(columns["p_holm"][k]),
            )
        )
        for k in changed[:NUM_CLASSES_SHOWN]
    ]
    return Table(
        name=f"classes_{number}",
        caption=f"The {len(rows)} classes whose accuracy differs most between {run.name} and "
        f"{first.name}; exact McNemar p, and corrected by Holm for all classes.",
        columns=("class", "clips", first.name, run.name, "difference", "p", "p (Holm)"),
        rows=tuple(rows),
        kind="dense",
    )


def _settings(runs: Sequence[Run]) -> Table:
    """What the runs did not have in common, as far as their evaluations and heads recorded it."""
    found = [_recorded(run) for run in runs]
    names = sorted(set().union(*found))
    rows = []
    for name in names:
        values = [each.get(name, "–") for each in found]
        if len(set(values)) > 1:
            rows.append(Row(cells(name, *values)))
    return Table(
        name="settings",
        caption="Settings and versions that differ between the runs.",
        columns=("setting", *(run.name for run in runs)),
        rows=tuple(rows),
        num_names=1 + len(runs),
        kind="dense",
    )


def _recorded(run: Run) -> dict[str, str]:
    origins = {"evaluation": run.inputs.metrics.get("provenance", {}), **run.inputs.origins}
    recorded: dict[str, str] = {"store": str(run.inputs.metrics["store"])}
    for origin in origins.values():
        recorded |= dict(flatten(origin.get("settings", {})))
        recorded |= dict(flatten(origin.get("versions", {})))
        recorded["commit"] = str(origin.get("commit", "–"))
    return recorded
