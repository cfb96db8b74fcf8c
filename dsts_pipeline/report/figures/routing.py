"""Figures of the routing: who serves whom, what the gates do, how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsts_pipeline.metrics.routing import class_by_neuron
from dsts_pipeline.report.figures.drawn import Figure
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.plots.bars import neuron_chart
from dsts_pipeline.report.plots.charts import Series, curve_chart
from dsts_pipeline.report.plots.matrices import class_by_neuron_drawing, group_starts
from dsts_pipeline.report.plots.scatter import Point, point_chart


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
