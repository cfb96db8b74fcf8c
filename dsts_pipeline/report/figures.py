"""The figures of a page: the data of each are chosen here, and drawn by charts.py.

Enters: `ReportInputs`. Leaves: figures by name, panels that belong together, which stand in the
page and as one file for papers. One that the run has no data for is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.metrics.predictions import align
from dsts_pipeline.report.charts import (
    Chart,
    Dot,
    Series,
    bar_chart,
    class_by_neuron_chart,
    confidence_chart,
    confusion_chart,
    curve_chart,
    dot_chart,
    group_starts,
    head_number,
    neuron_chart,
    point_chart,
    reliability_chart,
    sheet_svg,
)
from dsts_pipeline.report.inputs import ReportInputs

Epochs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """Panels of one kind; `num_rows` are those of bars, where it has some."""

    panels: tuple[Chart, ...]
    columns: int = 3
    num_rows: int = 0

    @property
    def from_zero(self) -> bool:
        """Whether the axes of values start at zero."""
        return all(panel.from_zero for panel in self.panels)

    def as_file(self) -> str:
        """All panels as one SVG file with its own colours: a file knows no page around it."""
        return sheet_svg(self.panels, self.columns)


def draw_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures of the page about one run, by name."""
    heads = [(head["title"], head_number(name), head) for name, head in inputs.heads]
    trained = [
        (head["title"], head_number(name), inputs.histories.get(name) or ())
        for name, head in inputs.heads
    ]
    figures = {
        "gains": _gains(inputs),
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


# ---- what the head adds, class by class ---------------------------------------------------------

NUM_CLASSES_SHOWN = 24
SMALLEST_NEED = 0.5  # points, of all classes together, below which there is nothing to draw


def _gains(inputs: ReportInputs) -> Figure:
    """The main head's accuracy minus its opponent's, by class: the most changed ones of many."""
    if inputs.opponent is None:
        return Figure(())
    main = inputs.answers
    other = align(main, inputs.predictions[inputs.opponent])
    counts = np.bincount(main.labels, minlength=main.num_classes)
    right, right_of_other = (
        np.bincount(main.labels[one.predicted == main.labels], minlength=main.num_classes)
        for one in (main, other)
    )
    gains = 100 * (right - right_of_other) / np.maximum(counts, 1)
    shown = np.flatnonzero(counts)
    if len(shown) > NUM_CLASSES_SHOWN:
        shown = shown[np.argsort(-np.abs(gains[shown]), kind="stable")][:NUM_CLASSES_SHOWN]
        shown = shown[gains[shown] != 0]
    shown = shown[np.argsort(-gains[shown], kind="stable")]
    if not len(shown):
        return Figure(())
    names = inputs.class_names
    rows = [
        (
            names[k],
            float(gains[k]),
            f"{names[k]}: {right[k]} of {counts[k]} clips right, "
            f"{right_of_other[k]} by {inputs.opponent_title}",
        )
        for k in shown.tolist()
    ]
    title = f"{inputs.main['title']} minus {inputs.opponent_title}"
    chart = bar_chart(title, "points", rows, is_gain=True)
    return Figure((chart,), columns=1, num_rows=len(rows))


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
    value = figures[key]
    low, high = (figures.get(f"{key}_{end}", value) for end in ("low", "high"))
    return Dot(title, 100 * value, 100 * low, 100 * high, number)


def _attributes(inputs: ReportInputs) -> Figure:
    heads = [(name, head) for name, head in inputs.heads if head.get("attributes")]
    if not heads or not inputs.attribute_names:
        return Figure(())
    groups = []
    for attribute in inputs.attribute_names:
        dots = [
            _dot(head["title"], head_number(name), head["attributes"][attribute], "accuracy")
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
    if "calibration" in inputs.left_out:
        return Figure(())
    heads = [
        (head["title"], head_number(name), head["calibration"]["equal_width"]["bins"])
        for name, head in inputs.heads
        if head.get("calibration")
    ]
    panels = (reliability_chart(heads), confidence_chart(heads)) if heads else ()
    return Figure(panels, columns=2)


# ---- routing: who serves whom, what the gates do, how it came about -----------------------------


def routing_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Figures of the main head: its classes, gates and, where it has several, its neurons."""
    if not inputs.main.get("routing"):
        return {}
    epochs = inputs.histories.get(inputs.main_head) or ()
    found = {
        "class_need": _class_need(inputs),
        "routing_curves": _routing_curves(epochs, inputs.num_neurons, with_gates=inputs.has_gates),
    }
    counts = inputs.neuron_counts()
    if counts is None:
        return found
    routing = inputs.main["routing"]
    panels = tuple(
        neuron_chart(
            position, layer["usage"], layer.get("temporal_share") if inputs.has_gates else None
        )
        for position, layer in enumerate(routing["layers"])
    )
    rules = group_starts(inputs.attributes)
    return found | {
        "neurons": Figure(panels),
        "class_by_neuron": Figure((class_by_neuron_chart(counts, inputs.class_names, rules),)),
        "need": _need(inputs),
    }


def _need(inputs: ReportInputs) -> Figure:
    """Per layer: need of time of the classes that a neuron serves, against its temporal share."""
    if "temporal_need" in inputs.left_out or not inputs.has_gates:
        return Figure(())
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


def _class_need(inputs: ReportInputs) -> Figure:
    """Need of time by class: all of few, the ends of many; nothing where no class needs any."""
    columns = (inputs.routing_of_main or {}).get("class_need") or {"need": ()}
    known = [(100 * need, k) for k, need in enumerate(columns["need"]) if need is not None]
    if "temporal_need" in inputs.left_out or all(abs(need) < SMALLEST_NEED for need, _ in known):
        return Figure(())
    known.sort(key=lambda one: -one[0])
    half = NUM_CLASSES_SHOWN // 2
    parts = {"need of time": known}
    if len(known) > NUM_CLASSES_SHOWN:
        parts = {"most need of time": known[:half], "least need of time": known[-half:]}
    panels = []
    for title, part in parts.items():
        rows = [
            (
                inputs.class_names[k],
                need,
                f"{inputs.class_names[k]}: {need:.1f} points less of the true class without the "
                "order of time",
            )
            for need, k in part
        ]
        if rows:
            panels.append(bar_chart(title, "points of probability", rows))
    return Figure(tuple(panels), columns=2)


def _routing_curves(epochs: Epochs, num_neurons: int, *, with_gates: bool) -> Figure:
    rows = [row for row in epochs if row.get("layers")]
    if not rows:
        return Figure(())
    panels = []
    if num_neurons:
        even = float(np.log(num_neurons))
        series = _layer_series(rows, "entropy")
        about = (even, f"even use, ln {num_neurons}")
        panels += [
            curve_chart("entropy of use, nats", series, low=0.0, high=1.12 * even, reference=about),
            curve_chart(
                "dead neurons",
                _layer_series(rows, "dead"),
                low=0.0,
                high=float(num_neurons),
                counts=True,
            ),
        ]
    if with_gates:
        gates = {"temporal_share": "temporal channels, %", "saturated_share": "saturated gates, %"}
        panels += [
            curve_chart(title, _layer_series(rows, key, scale=100.0), low=0.0, high=100.0)
            for key, title in gates.items()
        ]
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
