"""Figures over several runs: accuracies, curves over each other, confusion gained and lost."""

from __future__ import annotations

from collections.abc import Sequence

from dsts_pipeline.metrics import align
from dsts_pipeline.metrics.confusion import confusion_matrix
from dsts_pipeline.report.figures import Figure
from dsts_pipeline.report.figures.routing import routing_figures
from dsts_pipeline.report.plots.charts import Dot, Series, curve_chart, dot_chart
from dsts_pipeline.report.plots.differences import difference_drawing
from dsts_pipeline.report.plots.matrices import group_starts
from dsts_pipeline.report.runs.inputs import Run


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
