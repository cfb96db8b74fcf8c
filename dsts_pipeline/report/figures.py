"""All drawings of the page, by name: choose the data here, draw it in plots/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.metrics.confusion import confusion_matrix
from dsts_pipeline.metrics.routing import class_by_neuron
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.plots.bars import neuron_panel
from dsts_pipeline.report.plots.curves import Series, curve_panel, key_panel
from dsts_pipeline.report.plots.dots import Dot, dot_panel
from dsts_pipeline.report.plots.matrices import (
    class_by_neuron_drawing,
    confusion_drawing,
    group_starts,
)
from dsts_pipeline.report.plots.svg import Drawing, sheet


@dataclass(frozen=True)
class Figure:
    """Panels that belong together and the lines that their legend explains."""

    panels: tuple[Drawing, ...]
    legend: tuple[Series, ...] = ()

    def as_sheet(self) -> Drawing:
        """All in one drawing, legend included, for a file of its own."""
        key = (key_panel(self.legend),) if self.legend else ()
        return sheet((*self.panels, *key))


def draw_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures by name; one that the run has no data for is left out."""
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
    figures |= _routing(inputs, rules)
    return {name: figure for name, figure in figures.items() if figure.panels}


def _accuracy(inputs: ReportInputs) -> Figure:
    panels = []
    for key, title in (("top1", "top-1, %"), ("class_wise", "class-wise, %")):
        dots = [_dot(inputs, name, head, key) for name, head in inputs.heads]
        panels.append(dot_panel(title, [("", dots)]))
    return Figure(tuple(panels))


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
    legend = tuple(Series(head["title"], (), (), inputs.number_of(name)) for name, head in heads)
    return Figure((dot_panel("attribute right, %", groups),), legend)


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
        panels.append(curve_panel(title, series, unit=" %" if scale == 100 else ""))
    legend = [
        _series(inputs, name, epochs, f"{part}_loss", 1.0)
        for name, epochs in trained
        for part in ("train", "heldout")
    ]
    drawn = tuple(panel for panel in panels if panel is not None)
    return Figure(drawn, tuple(one for one in legend if one.points()))


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


def _routing(inputs: ReportInputs, rules: list[int]) -> dict[str, Figure]:
    name = inputs.main_head
    routing = inputs.metrics["heads"][name].get("routing")
    answers = inputs.predictions[name]
    if not routing or answers.neurons is None:
        return {}
    counts = class_by_neuron(*answers.routes(), answers.num_classes, routing["num_neurons"])
    panels = tuple(
        neuron_panel(position, layer["usage"], layer.get("temporal_share"))
        for position, layer in enumerate(routing["layers"])
    )
    return {
        "neurons": Figure(panels),
        "class_by_neuron": Figure((class_by_neuron_drawing(counts, inputs.class_names, rules),)),
        "routing_curves": _routing_curves(
            inputs.histories.get(name) or (), int(routing["num_neurons"])
        ),
    }


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
        curve_panel(
            "entropy of use, nats",
            by_quantity["entropy"],
            low=0.0,
            high=even * 1.12 or None,
            reference=(even, f"even use, ln {num_neurons}"),
        ),
        curve_panel(
            "dead neurons", by_quantity["dead"], low=0.0, high=float(num_neurons), counts=True
        ),
        curve_panel("temporal channels, %", by_quantity["temporal_share"], low=0.0, high=100.0),
        curve_panel("saturated gates, %", by_quantity["saturated_share"], low=0.0, high=100.0),
    )
    drawn = tuple(panel for panel in panels if panel is not None)
    return Figure(drawn, tuple(by_quantity["entropy"]) if drawn else ())


def _layer_series(rows: Sequence[Mapping[str, Any]], layer: int, key: str) -> Series:
    scale = 100.0 if key.endswith("share") else 1.0
    values = [row["layers"][layer].get(key) for row in rows]
    means = [None if value is None else scale * float(np.mean(value)) for value in values]
    # Colours 2, 3, ...: grey and orange stay those of the baselines.
    places = [float(row["epoch"]) for row in rows]
    return Series(f"layer {layer + 1}", places, means, number=layer + 2)
