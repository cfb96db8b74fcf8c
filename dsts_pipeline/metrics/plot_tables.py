"""The report's figures as small tables, for `dvc plots show` and `dvc plots diff`.

Enters: the dictionary of metrics.json and each head's predictions. Leaves: CSV text by file name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dsts_pipeline.base.files import csv_text
from dsts_pipeline.metrics.predictions import Predictions
from dsts_pipeline.metrics.table import ordered_heads

_Heads = Iterable[tuple[str, Mapping[str, Any]]]
_SHARES = ("clips", "right", "accuracy", "low", "high")
_BIN = ("lower", "upper", "clips", "confidence", "accuracy", "accuracy_low", "accuracy_high")


def plot_tables(
    metrics: Mapping[str, Any],
    predictions: Mapping[str, Predictions],
    routing: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """CSV text by path below the folder of plots.

    Args:
        metrics: what `assemble_metrics` returned.
        predictions: by head.
        routing: what `assemble_routing` returned, for the use of neurons.

    Returns:
        "heads.csv" (a row per head and figure), "per_class.csv" (a row per head and class that has
        clips), "reliability.csv" (a row per head and bin that has clips), "class_by_neuron.csv" (a
        row per head that routes, layer, class and neuron that has views), "confusion_by_head.csv"
        (a row per head and cell that has clips), and for each head "confusion/HEAD.csv" (a row per
        clip), the form that DVC's own template wants.
    """
    classes, heads = metrics["classes"], ordered_heads(metrics)
    routed = (routing or {"heads": {}})["heads"].items()
    tables = {
        "heads.csv": csv_text(("head", "figure", "value", "low", "high"), _heads(heads)),
        "per_class.csv": csv_text(("head", "class", *_SHARES), _per_class(heads, classes)),
        "reliability.csv": csv_text(("head", "bin", *_BIN), _reliability(heads)),
        "class_by_neuron.csv": csv_text(
            ("head", "layer", "class", "neuron", "views"), _class_by_neuron(routed, classes)
        ),
    }
    tables["confusion_by_head.csv"] = csv_text(
        ("head", "actual", "predicted", "clips"),
        (row for name, _ in heads for row in _cells(name, predictions[name], classes)),
    )
    for name, _ in heads:
        answers = zip(predictions[name].labels, predictions[name].predicted, strict=True)
        named = ((classes[label], classes[given]) for label, given in answers)
        tables[f"confusion/{name}.csv"] = csv_text(("actual", "predicted"), named)
    return tables


def _cells(
    name: str, answers: Predictions, classes: Sequence[str]
) -> Iterable[tuple[str, str, str, int]]:
    """Cells of the confusion matrix that hold clips, classes in their order."""
    flat = answers.labels * len(classes) + answers.predicted
    for cell, clips in zip(*np.unique(flat, return_counts=True), strict=True):
        actual, predicted = divmod(int(cell), len(classes))
        yield name, classes[actual], classes[predicted], int(clips)


def _heads(heads: _Heads) -> Iterable[Sequence[Any]]:
    for name, head in heads:
        for figure in ("top1", "top5", "class_wise"):
            yield name, figure, *(head[f"{figure}{end}"] for end in ("", "_low", "_high"))
        for attribute, found in (head["attributes"] or {}).items():
            yield name, attribute, *(found[f"accuracy{end}"] for end in ("", "_low", "_high"))


def _per_class(heads: _Heads, classes: Sequence[str]) -> Iterable[Sequence[Any]]:
    for name, head in heads:
        columns = head["per_class"]
        for number, title in enumerate(classes):
            if columns["clips"][number]:
                yield name, title, *(columns[column][number] for column in _SHARES)


def _reliability(heads: _Heads) -> Iterable[Sequence[Any]]:
    for name, head in heads:
        for number, row in enumerate(head["calibration"]["equal_width"]["bins"]):
            yield name, number + 1, *(row[column] for column in _BIN)


def _class_by_neuron(heads: _Heads, classes: Sequence[str]) -> Iterable[Sequence[Any]]:
    for name, head in heads:
        for layer, found in enumerate(head["layers"]):
            for title, row in zip(classes, found["class_by_neuron"], strict=True):
                for neuron, views in enumerate(row):
                    if views:
                        yield name, layer + 1, title, neuron + 1, views
