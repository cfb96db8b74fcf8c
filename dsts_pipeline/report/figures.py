"""The figures of a page: the data of each are chosen here, and drawn by charts.py.

Enters: `ReportInputs`. Leaves: figures by name, panels that belong together, which stand in the
page and as one file for papers. One that the run has no data for is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.report.charts import (
    Chart,
    Dot,
    Series,
    class_by_neuron_chart,
    confidence_chart,
    confusion_chart,
    curve_chart,
    dot_chart,
    group_starts,
    neuron_chart,
    point_chart,
    reliability_chart,
    sheet_svg,
)
from dsts_pipeline.report.inputs import ReportInputs

Epochs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """Panels of one kind."""

    panels: tuple[Chart, ...]
    columns: int = 3

    def as_file(self) -> str:
        """All panels as one SVG file with its own colours: a file knows no page around it."""
        return sheet_svg(self.panels, self.columns)


def draw_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures of the page about one run, by name."""
    heads = [(head["title"], inputs.number_of(name), head) for name, head in inputs.heads]
    trained = [
        (head["title"], inputs.number_of(name), inputs.histories.get(name) or ())
        for name, head in inputs.heads
    ]
    figures = {
        "accuracy": accuracy_figure(heads),
        "attributes": _attributes(inputs),
        "curves": curves_figure([one for one in trained if one[2]]),
    }
    for name, _ in inputs.heads:
        rules = group_starts(inputs.attributes)
        chart = confusion_chart(inputs.confusion(name), inputs.class_names, rules)
        figures[f"confusion_{name}"] = Figure((chart,))
    figures |= {"reliability": _reliability(inputs)} | routing_figures(inputs)
    return {name: figure for name, figure in figures.items() if figure.panels}


# ---- accuracy, attributes, learning curves, confusion, calibration ------------------------------


def accuracy_figure(entries: Sequence[tuple[str, int, Mapping[str, Any]]]) -> Figure:
    """Top-1 and class-wise accuracy.

    Args:
        entries: title, number (for colour and marker) and figures of heads or runs.
    """
    return Figure(
        tuple(
            dot_chart(name, [("", [_dot(*entry, key) for entry in entries])])
            for key, name in (("top1", "top-1"), ("class_wise", "class-wise"))
        ),
        columns=2,
    )


def _dot(title: str, number: int, figures: Mapping[str, Any], key: str) -> Dot:
    value, low, high = (100 * figures[f"{key}{end}"] for end in ("", "_low", "_high"))
    return Dot(title, value, low, high, number)


def _attributes(inputs: ReportInputs) -> Figure:
    heads = [(name, head) for name, head in inputs.heads if head.get("attributes")]
    if not heads:
        return Figure(())
    groups = []
    for attribute in inputs.attribute_names:
        dots = [
            _dot(head["title"], inputs.number_of(name), head["attributes"][attribute], "accuracy")
            for name, head in heads
        ]
        groups.append((attribute, dots))
    return Figure((dot_chart("attribute right", groups),))


def curves_figure(
    entries: Sequence[tuple[str, int, Epochs]], *, always_faint: bool = False
) -> Figure:
    """Loss and accuracy over the epochs, on training clips and on those held out.

    Args:
        entries: title, number and epochs of heads or runs.
        always_faint: training clips are dashed though nothing was held out.
    """
    panels = []
    for key, name, scale in (("loss", "loss", 1.0), ("accuracy", "top-1, %", 100.0)):
        series = []
        for title, number, epochs in entries:
            held_out = any(row.get("heldout_loss") is not None for row in epochs)
            places = [float(row["epoch"]) for row in epochs]
            for part, where in (("train", "training clips"), ("heldout", "held-out clips")):
                found = [row.get(f"{part}_{key}") for row in epochs]
                values = [None if value is None else scale * float(value) for value in found]
                faint = part == "train" and (held_out or always_faint)
                series.append(Series(f"{title}, {where}", places, values, number, faint))
        panels.append(curve_chart(name, series, unit=" %" if scale == 100 else ""))
    return Figure(tuple(panel for panel in panels if panel is not None), columns=2)


def _reliability(inputs: ReportInputs) -> Figure:
    """Nothing where the evaluation did not measure calibration."""
    heads = [
        (head["title"], inputs.number_of(name), head["calibration"]["equal_width"]["bins"])
        for name, head in inputs.heads
        if head.get("calibration")
    ]
    panels = (reliability_chart(heads), confidence_chart(heads)) if heads else ()
    return Figure(panels, columns=2)


# ---- routing: who serves whom, what the gates do, how it came about -----------------------------


def routing_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures of the main head, if it routes."""
    counts = inputs.neuron_counts()
    if counts is None:
        return {}
    routing = inputs.main["routing"]
    panels = tuple(
        neuron_chart(position, layer["usage"], layer.get("temporal_share"))
        for position, layer in enumerate(routing["layers"])
    )
    rules = group_starts(inputs.attributes)
    epochs = inputs.histories.get(inputs.main_head) or ()
    return {
        "neurons": Figure(panels),
        "class_by_neuron": Figure((class_by_neuron_chart(counts, inputs.class_names, rules),)),
        "need": _need(inputs),
        "routing_curves": _routing_curves(epochs, int(routing["num_neurons"])),
    }


def _need(inputs: ReportInputs) -> Figure:
    """Per layer: need of time of the classes that a neuron serves, against its temporal share."""
    panels = []
    for layer, found in enumerate((inputs.routing_of_main or {}).get("layers", ())):
        gates = found.get("gates") or {}
        if gates.get("class_need") is None:
            continue
        pairs = zip(gates["class_need"], gates["temporal_share"], strict=True)
        points = [
            (
                100 * need,
                100 * share,
                f"neuron {number}: need {100 * need:.1f} points, {100 * share:.0f} % temporal",
            )
            for number, (need, share) in enumerate(pairs, start=1)
            if need is not None and share is not None
        ]
        if points:
            title = f"Layer {layer + 1}"
            panels.append(point_chart(title, "need of time, points", "temporal, %", points))
    return Figure(tuple(panels))


def _routing_curves(epochs: Epochs, num_neurons: int) -> Figure:
    rows = [row for row in epochs if row.get("layers")]
    if not rows:
        return Figure(())
    even = float(np.log(num_neurons))
    panels = (
        curve_chart(
            "entropy of use, nats",
            _layer_series(rows, "entropy"),
            low=0.0,
            high=even * 1.12 or None,
            reference=(even, f"even use, ln {num_neurons}"),
        ),
        curve_chart(
            "dead neurons",
            _layer_series(rows, "dead"),
            low=0.0,
            high=float(num_neurons),
            counts=True,
        ),
        *(
            curve_chart(title, _layer_series(rows, key, scale=100.0), low=0.0, high=100.0)
            for key, title in (
                ("temporal_share", "temporal channels, %"),
                ("saturated_share", "saturated gates, %"),
            )
        ),
    )
    return Figure(tuple(panel for panel in panels if panel is not None), columns=2)


def _layer_series(rows: Epochs, key: str, scale: float = 1.0) -> list[Series]:
    places = [float(row["epoch"]) for row in rows]
    series = []
    for layer in range(len(rows[0]["layers"])):
        found = [row["layers"][layer].get(key) for row in rows]
        means = [None if value is None else scale * float(np.mean(value)) for value in found]
        # Colours 2, 3, ...: grey and orange stay those of the baselines.
        series.append(Series(f"layer {layer + 1}", places, means, number=layer + 2))
    return series
