"""The page about several runs on the same clips: the first is what the others are compared with.

Enters: finished runs with the names that the page calls them by. Leaves: a `Page`, as of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import Bootstrap, align, compare_predictions
from dsts_pipeline.metrics.accuracy import confusion_matrix
from dsts_pipeline.report.charts import difference_chart, group_starts
from dsts_pipeline.report.figures import Figure, accuracy_figure, curves_figure, routing_figures
from dsts_pipeline.report.inputs import ReportInputs, flatten, without_intervals
from dsts_pipeline.report.page import Page, render_page, route_information
from dsts_pipeline.report.tables import (
    KEYS,
    Table,
    difference,
    p_value,
    percent,
    row,
    signed_points,
    with_interval,
)

TITLE = "Runs compared"
NUM_CLASSES_SHOWN = 15


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run and the name that the page calls it by."""

    name: str
    inputs: ReportInputs


def render_comparison(runs: Sequence[Run], bootstrap: Bootstrap) -> Page:
    """Draw and write out the page.

    Raises:
        DataError: Fewer than two runs, one name twice, other classes or other clips.
    """
    check_runs(runs)
    figures = comparison_figures(runs)
    context: dict[str, Any] = {
        "title": TITLE,
        "runs": runs,
        "bounded": _bounded(runs),
        "information": [route_information(run.inputs) for run in runs],
        "data": {"classes": [], "heads": []},
        "tabs": [
            ("summary", "Summary", True),
            ("curves", "Curves", "curves" in figures),
            ("confusion", "Confusion", True),
            ("routing", "Routing", any(name.startswith("neurons_") for name in figures)),
            ("run", "Settings", True),
        ],
    }
    return render_page("comparison.html.j2", figures, comparison_tables(runs, bootstrap), context)


def _bounded(runs: Sequence[Run]) -> bool:
    """Whether the clips, which all runs have in common, are enough for intervals."""
    return not any("intervals" in run.inputs.left_out for run in runs)


def check_runs(runs: Sequence[Run]) -> None:
    """Hold runs to what a comparison clip by clip needs.

    Raises:
        DataError: Fewer than two runs, one name twice, other classes or other clips.
    """
    if len(runs) < 2:
        raise DataError("one run compares with nothing; name two or more")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"a run is named twice: {', '.join(names)}; name each once")
    first = runs[0]
    for run in runs[1:]:
        if list(run.inputs.class_names) != list(first.inputs.class_names):
            raise DataError(
                f"{run.name} knows {len(run.inputs.class_names)} classes, {first.name} "
                f"{len(first.inputs.class_names)}, or other ones; compare runs of one data set"
            )
        odd = sorted(set(run.inputs.answers.clip_ids) ^ set(first.inputs.answers.clip_ids))
        if odd:
            raise DataError(
                f"{run.name} was evaluated on other clips than {first.name}: {len(odd)} are in "
                f"one of them only, such as {odd[0]!r}; evaluate both on the same split of the "
                "same data set"
            )


# ---- figures: accuracies, curves over each other, confusion gained and lost ---------------------


def comparison_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Figures by name; "difference_1" is run 1's confusion matrix minus run 0's, and so on."""
    # Colours and markers of runs, in their order: they are not those of heads by name.
    trained = [
        (run.name, number, run.inputs.histories.get(run.inputs.main_head) or ())
        for number, run in enumerate(runs)
    ]
    named = [(run.name, number, run.inputs.main) for number, run in enumerate(runs)]
    figures = {
        "accuracy": accuracy_figure(named),
        "curves": curves_figure(trained, always_faint=True),
    }
    for number, run in enumerate(runs[1:], start=1):
        figures[f"difference_{number}"] = _difference(runs[0].inputs, run.inputs)
    for number, run in enumerate(runs):
        found = routing_figures(run.inputs)
        for name in ("neurons", "class_by_neuron"):
            if name in found:
                figures[f"{name}_{number}"] = found[name]
    return {name: figure for name, figure in figures.items() if figure.panels}


def _difference(first: ReportInputs, other: ReportInputs) -> Figure:
    before, after = (
        confusion_matrix(answers.labels, answers.predicted, answers.num_classes)
        for answers in (first.answers, align(first.answers, other.answers))
    )
    rules = group_starts(first.attributes)
    return Figure((difference_chart(after - before, first.class_names, rules),))


# ---- tables: figures, paired differences, classes that changed, settings ------------------------


def comparison_tables(runs: Sequence[Run], bootstrap: Bootstrap) -> dict[str, Table]:
    """Tables by name; one without rows is left out."""
    first, *others = runs
    apart = [
        compare_predictions(run.inputs.answers, first.inputs.answers, bootstrap) for run in others
    ]
    if not _bounded(runs):
        apart = [without_intervals(found) for found in apart]
    tables = [_figures(runs), _differences(first, others, apart), _settings(runs)]
    for number, (run, found) in enumerate(zip(others, apart, strict=True), start=1):
        tables.append(_classes(first, run, found, number))
    return {table.name: table for table in tables if table.rows}


def _accuracies(runs: Sequence[Run]) -> tuple[str, ...]:
    """Columns of accuracies: top-5 where it says anything."""
    has_top5 = all(run.inputs.has_top5 for run in runs)
    return ("top-1", *(("top-5",) if has_top5 else ()), "class-wise")


def _figures(runs: Sequence[Run]) -> Table:
    figures = _accuracies(runs)
    brackets = ", intervals in brackets" if _bounded(runs) else ""
    rows = [
        row(
            run.name,
            head["title"],
            *(with_interval(head, KEYS[name]) for name in figures),
            f"{head['num_parameters']:,}",
            emphasised=key == run.inputs.main_head,
        )
        for run in runs
        for key, head in run.inputs.heads
    ]
    return Table(
        name="figures",
        caption=f"Every head of every run, percent{brackets}. The bold ones are compared above.",
        columns=("run", "head", *figures, "parameters"),
        rows=rows,
        num_names=2,
    )


def _differences(first: Run, others: Sequence[Run], apart: Sequence[Mapping[str, Any]]) -> Table:
    figures = _accuracies([first, *others])
    rows = [
        row(
            run.name,
            *(difference(found[KEYS[name]]) for name in figures),
            str(found["only_first_right"]),
            str(found["only_second_right"]),
            p_value(found["mcnemar"]["p"]),
        )
        for run, found in zip(others, apart, strict=True)
    ]
    alone = ("it alone right", f"{first.name} alone")
    bounds, cover = " with paired bootstrap intervals", "They cover the choice of clips,"
    if not _bounded([first, *others]):
        bounds, cover = "", "It covers the choice of clips,"
    return Table(
        name="differences",
        caption=f"Each run minus {first.name} on the same clips: percentage points{bounds}, clips "
        f"that one of the two alone has right, and McNemar’s p of top-1. {cover} not what "
        "another seed of a training would give.",
        columns=("run", *figures, *alone, "p"),
        rows=rows,
    )


def _classes(first: Run, run: Run, found: Mapping[str, Any], number: int) -> Table:
    columns = found["per_class"]
    changed = [k for k, value in enumerate(columns["difference"]) if value]
    changed.sort(key=lambda k: -abs(columns["difference"][k]))
    rows = [
        row(
            first.inputs.class_names[k],
            str(columns["clips"][k]),
            percent(columns["second"][k] / columns["clips"][k]),
            percent(columns["first"][k] / columns["clips"][k]),
            signed_points(columns["difference"][k]),
            p_value(columns["p"][k]),
            p_value(columns["p_holm"][k]),
        )
        for k in changed[:NUM_CLASSES_SHOWN]
    ]
    return Table(
        name=f"classes_{number}",
        caption=f"The {len(rows)} classes whose accuracy differs most between {run.name} and "
        f"{first.name}; exact McNemar p, and corrected by Holm for all classes.",
        columns=("class", "clips", first.name, run.name, "difference", "p", "p (Holm)"),
        rows=rows,
        kind="dense",
    )


def _settings(runs: Sequence[Run]) -> Table:
    """What the runs did not have in common, as far as their evaluations and heads recorded it."""
    found = [_recorded(run.inputs) for run in runs]
    rows = []
    for name in sorted(set().union(*found)):
        values = [each.get(name, "–") for each in found]
        if len(set(values)) > 1:
            rows.append(row(name, *values))
    return Table(
        name="settings",
        caption="Settings and versions that differ between the runs.",
        columns=("setting", *(run.name for run in runs)),
        rows=rows,
        num_names=1 + len(runs),
        kind="dense",
    )


def _recorded(inputs: ReportInputs) -> dict[str, str]:
    origins = {"evaluation": inputs.metrics.get("provenance", {}), **inputs.origins}
    recorded: dict[str, str] = {"store": str(inputs.metrics["store"])}
    for origin in origins.values():
        recorded |= dict(flatten(origin.get("settings", {})))
        recorded |= dict(flatten(origin.get("versions", {})))
        recorded["commit"] = str(origin.get("commit", "–"))
    return recorded
