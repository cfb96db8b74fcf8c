"""The page about several runs; see `report/page.py` for the page about one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import Bootstrap, Predictions, align, compare_predictions
from dsts_pipeline.metrics.accuracy import confusion_matrix
from dsts_pipeline.report.charts import Dot, Series, curve_chart, dot_chart
from dsts_pipeline.report.figures import Figure, routing_figures
from dsts_pipeline.report.inputs import ReportInputs, flatten
from dsts_pipeline.report.matrices import difference_drawing, group_starts
from dsts_pipeline.report.page import Page, render_document, route_information
from dsts_pipeline.report.tables import Row, Table, cells, difference, with_interval
from dsts_pipeline.report.wording import p_value, percent, signed_points

# ---- Runs that can be compared: same classes, same clips. ---------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run and the name that the page calls it by."""

    name: str
    inputs: ReportInputs

    @property
    def answers(self) -> Predictions:
        """Those of its main head."""
        return self.inputs.predictions[self.inputs.main_head]

    @property
    def figures(self) -> Mapping[str, Any]:
        """The main head's part of metrics.json."""
        figures: Mapping[str, Any] = self.inputs.metrics["heads"][self.inputs.main_head]
        return figures


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
        odd = sorted(set(run.answers.clip_ids) ^ set(first.answers.clip_ids))
        if odd:
            raise DataError(
                f"{run.name} was evaluated on other clips than {first.name}: {len(odd)} are in "
                f"one of them only, such as {odd[0]!r}; evaluate both on the same split of the "
                "same data set"
            )


# ---- Tables over several runs: figures, paired differences, classes that changed, settings. -----

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


# ---- Figures over several runs: accuracies, curves over each other, confusion gained and lost. --


def comparison_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Figures by name; "difference_1" is run 1's confusion matrix minus run 0's, and so on."""
    figures = {"accuracy": _accuracy(runs), "curves": _curves(runs)}
    for number in range(1, len(runs)):
        figures[f"difference_{number}"] = _difference(runs[0], runs[number])
    for number, run in enumerate(runs):
        found = routing_figures(run.inputs)
        for name in ("neurons", "class_by_neuron"):
            if name in found:
                figures[f"{name}_{number}"] = found[name]
    return {name: figure for name, figure in figures.items() if figure.panels}


def _accuracy(runs: Sequence[Run]) -> Figure:
    panels = []
    for key, title in (("top1", "top-1"), ("class_wise", "class-wise")):
        dots = [_dot(run, key, number) for number, run in enumerate(runs)]
        panels.append(dot_chart(title, [("", dots)]))
    return Figure(tuple(panels), columns=2)


def _dot(run: Run, key: str, number: int) -> Dot:
    value, low, high = (100 * run.figures[f"{key}{end}"] for end in ("", "_low", "_high"))
    return Dot(run.name, value, low, high, number)


def _curves(runs: Sequence[Run]) -> Figure:
    panels = []
    for key, title, scale in (("loss", "loss", 1.0), ("accuracy", "top-1, %", 100.0)):
        series = []
        for number, run in enumerate(runs):
            rows = run.inputs.histories.get(run.inputs.main_head) or ()
            places = [float(row["epoch"]) for row in rows]
            for part, where in (("train", "training clips"), ("heldout", "held-out clips")):
                values = [_scaled(row.get(f"{part}_{key}"), scale) for row in rows]
                name = f"{run.name}, {where}"
                series.append(Series(name, places, values, number, faint=part == "train"))
        panels.append(curve_chart(title, series, unit=" %" if scale == 100 else ""))
    return Figure(tuple(panel for panel in panels if panel is not None), columns=2)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * float(value)


def _difference(first: Run, other: Run) -> Figure:
    counts = []
    for answers in (first.answers, align(first.answers, other.answers)):
        counts.append(confusion_matrix(answers.labels, answers.predicted, answers.num_classes))
    inputs = first.inputs
    rules = group_starts(inputs.attributes)
    return Figure((difference_drawing(counts[1] - counts[0], inputs.class_names, rules),))


# ---- The page about several runs; see `report/page.py` for the page about one. ------------------

TITLE = "Dynamic spatio-temporal specialization: runs compared"


def render_comparison(runs: Sequence[Run], bootstrap: Bootstrap) -> Page:
    """Draw and write out the page; the first run is what the others are compared with.

    Raises:
        DataError: The runs can't be compared; see `check_runs`.
    """
    check_runs(runs)
    figures, tables = comparison_figures(runs), comparison_tables(runs, bootstrap)
    routed = any(name.startswith("neurons_") for name in figures)
    tabs = (
        ("summary", "Summary", True),
        ("learning", "Curves", "curves" in figures),
        ("errors", "Confusion", True),
        ("routing", "Routing", routed),
        ("run", "Settings", True),
    )
    context: dict[str, Any] = {
        "title": TITLE,
        "runs": runs,
        "figures": figures,
        "tables": tables,
        "information": [route_information(run.inputs) for run in runs],
        "tabs": [(name, title) for name, title, there in tabs if there],
        "data": {"classes": [], "heads": []},
    }
    return Page(render_document("compare.html.j2", context), figures, tables)
