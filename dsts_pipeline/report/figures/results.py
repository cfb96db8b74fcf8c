"""Figures of the results: accuracy, attributes, learning curves, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsts_pipeline.metrics.confusion import confusion_matrix
from dsts_pipeline.report.figures.drawn import Figure
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.plots.charts import Dot, Series, curve_chart, dot_chart
from dsts_pipeline.report.plots.matrices import confusion_drawing, group_starts


def result_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """What every run has, whatever its heads."""
    figures = {
        "accuracy": _accuracy(inputs),
        "attributes": _attributes(inputs),
        "curves": _curves(inputs),
    }
    rules = group_starts(inputs.attributes)
    for name, _ in inputs.heads:
        answers = inputs.predictions[name]
        counts = confusion_matrix(answers.labels, answers.predicted, answers.num_classes)
        drawing = confusion_drawing(counts, inputs.class_names, rules)
        figures[f"confusion_{name}"] = Figure((drawing,))
    return figures


def _accuracy(inputs: ReportInputs) -> Figure:
    panels = []
    for key, title in (("top1", "top-1"), ("class_wise", "class-wise")):
        dots = [_dot(inputs, name, head, key) for name, head in inputs.heads]
        panels.append(dot_chart(title, [("", dots)]))
    return Figure(tuple(panels), columns=2)


def _dot(inputs: ReportInputs, name: str, figures: Mapping[str, Any], key: str) -> Dot:
    value, low, high = (100 * figures[f"{key}{end}"] for end in ("", "_low", "_high"))
    head = inputs.metrics["heads"][name]
    return Dot(head["title"], value, low, high, inputs.number_of(name))


def _attributes(inputs: ReportInputs) -> Figure:
    heads = [(name, head) for name, head in inputs.heads if head.get("attributes")]
    if not heads:
        return Figure(())
    groups = [
        (
            attribute,
            [_dot(inputs, name, head["attributes"][attribute], "accuracy") for name, head in heads],
        )
        for attribute in inputs.attribute_names
    ]
    return Figure((dot_chart("attribute right", groups),))


def _curves(inputs: ReportInputs) -> Figure:
    trained = [(name, inputs.histories.get(name) or ()) for name, _ in inputs.heads]
    trained = [(name, epochs) for name, epochs in trained if epochs]
    panels = []
    for key, title, scale in (("loss", "loss", 1.0), ("accuracy", "top-1, %", 100.0)):
        series = [
            _series(inputs, name, epochs, f"{part}_{key}", scale)
            for name, epochs in trained
            for part in ("train", "heldout")
        ]
        panels.append(curve_chart(title, series, unit=" %" if scale == 100 else ""))
    return Figure(tuple(panel for panel in panels if panel is not None), columns=2)


def _series(
    inputs: ReportInputs,
    name: str,
    epochs: Sequence[Mapping[str, Any]],
    key: str,
    scale: float,
) -> Series:
    values = [None if row.get(key) is None else scale * float(row[key]) for row in epochs]
    training = key.startswith("train")
    held_out = any(row.get("heldout_loss") is not None for row in epochs)
    title = inputs.metrics["heads"][name]["title"]
    where = "training clips" if training else "held-out clips"
    places = [float(row["epoch"]) for row in epochs]
    number = inputs.number_of(name)
    return Series(f"{title}, {where}", places, values, number, faint=training and held_out)
