"""A figure: panels that belong together, in the page and as one file for papers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from dsts_pipeline.metrics.accuracy import confusion_matrix
from dsts_pipeline.metrics.routing import class_by_neuron
from dsts_pipeline.report.charts import (
    Bin,
    Chart,
    Dot,
    Point,
    Series,
    confidence_chart,
    curve_chart,
    dot_chart,
    light_colours,
    neuron_chart,
    point_chart,
    reliability_chart,
    sheet_svg,
    template_text,
)
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.matrices import (
    Drawing,
    class_by_neuron_drawing,
    confusion_drawing,
    element,
    group_starts,
    sheet,
)

_MARGIN = 12.0


@dataclass(frozen=True)
class Figure:
    """Panels of one kind: charts (interactive), or drawings whose cells the page's script knows."""

    panels: tuple[Chart, ...] | tuple[Drawing, ...]
    columns: int = 3

    def as_file(self) -> str:
        """All panels as one SVG file with its own colours: a file knows no page around it."""
        if isinstance(self.panels[0], Chart):
            return sheet_svg(self.panels, self.columns)
        return _with_own_colours(sheet(self.panels, self.columns))


def _with_own_colours(drawing: Drawing) -> str:
    style, light = template_text("figures.css"), light_colours()
    rules = style[style.index("/* marks */") :]
    rules = re.sub(r"var\((--[a-z0-9-]+)\)", lambda match: light[match[1]], rules)
    width, height = drawing.width + 2 * _MARGIN, drawing.height + 2 * _MARGIN
    return str(
        element(
            "svg",
            element("style", Markup(rules)),
            element("rect", width=width, height=height, fill=light["--paper"]),
            drawing.markup(x=_MARGIN, y=_MARGIN),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.0f} {height:.0f}",
            width=width,
            height=height,
        )
    )


# ---- Figures of calibration: what the heads' probabilities are worth. ---------------------------


def reliability_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """One figure where the evaluation measured calibration, else none."""
    heads = []
    for name, head in inputs.heads:
        if head.get("calibration"):
            rows = head["calibration"]["equal_width"]["bins"]
            bins = [_bin(row) for row in rows]
            heads.append((head["title"], inputs.number_of(name), bins))
    if not heads:
        return {}
    return {"reliability": Figure((reliability_chart(heads), confidence_chart(heads)), columns=2)}


def _bin(row: Mapping[str, Any]) -> Bin:
    return Bin(
        confidence=100 * row["confidence"],
        accuracy=100 * row["accuracy"],
        low=100 * row["accuracy_low"],
        high=100 * row["accuracy_high"],
        clips=row["clips"],
    )


# ---- Figures of the results: accuracy, attributes, learning curves, confusion. ------------------


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


# ---- Figures of the routing: who serves whom, what the gates do, how it came about. -------------


def routing_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures of the main head, if it routes."""
    name = inputs.main_head
    routing = inputs.metrics["heads"][name].get("routing")
    answers = inputs.predictions[name]
    if not routing or answers.neurons is None:
        return {}
    counts = class_by_neuron(*answers.routes(), answers.num_classes, routing["num_neurons"])
    rules = group_starts(inputs.attributes)
    panels = tuple(
        neuron_chart(position, layer["usage"], layer.get("temporal_share"))
        for position, layer in enumerate(routing["layers"])
    )
    return {
        "neurons": Figure(panels),
        "class_by_neuron": Figure((class_by_neuron_drawing(counts, inputs.class_names, rules),)),
        "need": _need(inputs),
        "routing_curves": _routing_curves(
            inputs.histories.get(name) or (), int(routing["num_neurons"])
        ),
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
            Point(
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


def _routing_curves(epochs: Sequence[Mapping[str, Any]], num_neurons: int) -> Figure:
    rows = [row for row in epochs if row.get("layers")]
    if not rows:
        return Figure(())
    even = float(np.log(num_neurons))
    by_quantity = {
        key: [_layer_series(rows, layer, key) for layer in range(len(rows[0]["layers"]))]
        for key in ("entropy", "dead", "temporal_share", "saturated_share")
    }
    panels = (
        curve_chart(
            "entropy of use, nats",
            by_quantity["entropy"],
            low=0.0,
            high=even * 1.12 or None,
            reference=(even, f"even use, ln {num_neurons}"),
        ),
        curve_chart(
            "dead neurons", by_quantity["dead"], low=0.0, high=float(num_neurons), counts=True
        ),
        curve_chart("temporal channels, %", by_quantity["temporal_share"], low=0.0, high=100.0),
        curve_chart("saturated gates, %", by_quantity["saturated_share"], low=0.0, high=100.0),
    )
    return Figure(tuple(panel for panel in panels if panel is not None), columns=2)


def _layer_series(rows: Sequence[Mapping[str, Any]], layer: int, key: str) -> Series:
    scale = 100.0 if key.endswith("share") else 1.0
    values = [row["layers"][layer].get(key) for row in rows]
    means = [None if value is None else scale * float(np.mean(value)) for value in values]
    # Colours 2, 3, ...: grey and orange stay those of the baselines.
    places = [float(row["epoch"]) for row in rows]
    return Series(f"layer {layer + 1}", places, means, number=layer + 2)


# ---- All drawings of the page, by name: choose the data here, draw it in plots/. ----------------


def draw_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures by name; one that the run has no data for is left out."""
    figures = result_figures(inputs) | reliability_figures(inputs) | routing_figures(inputs)
    return {name: figure for name, figure in figures.items() if figure.panels}
