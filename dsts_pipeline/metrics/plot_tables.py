"""The report's figures as small tables, for `dvc plots show` and `dvc plots diff`.

Enters: the dictionary of metrics.json and each head's predictions. Leaves: CSV text by file name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsts_pipeline.metrics.predictions import Predictions
from dsts_pipeline.metrics.table import ordered_heads


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
        "heads.csv" (figure by head), per head "per_class/HEAD.csv" (a row per class that has
        clips), "confusion/HEAD.csv" (a row per clip: actual, predicted), "reliability/HEAD.csv" (a
        row per bin that has clips), and per head that routes "class_by_neuron/HEAD.csv" (a row
        per layer, class and neuron that has views).
    """
    classes = metrics["classes"]
    tables = {"heads.csv": _csv(("head", "figure", "value", "low", "high"), _heads(metrics))}
    for name, head in ordered_heads(metrics):
        tables[f"per_class/{name}.csv"] = _csv(
            ("class", "clips", "right", "accuracy", "low", "high"), _per_class(head, classes)
        )
        answers = predictions[name]
        tables[f"confusion/{name}.csv"] = _csv(
            ("actual", "predicted"),
            (
                (classes[label], classes[given])
                for label, given in zip(answers.labels, answers.predicted, strict=True)
            ),
        )
        tables[f"reliability/{name}.csv"] = _csv(
            ("confidence", "accuracy", "clips"),
            (
                (row["confidence"], row["accuracy"], row["clips"])
                for row in head["calibration"]["equal_width"]["bins"]
            ),
        )
    for name, head in (routing or {"heads": {}})["heads"].items():
        tables[f"class_by_neuron/{name}.csv"] = _csv(
            ("layer", "class", "neuron", "views"), _class_by_neuron(head, classes)
        )
    return tables


def _heads(metrics: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    for _, head in ordered_heads(metrics):
        for figure in ("top1", "top5", "class_wise"):
            yield head["title"], figure, *(head[f"{figure}{end}"] for end in ("", "_low", "_high"))
        for attribute, found in (head["attributes"] or {}).items():
            bounds = (found[f"accuracy{end}"] for end in ("", "_low", "_high"))
            yield head["title"], attribute, *bounds


def _per_class(head: Mapping[str, Any], classes: Sequence[str]) -> Iterable[Sequence[Any]]:
    columns = head["per_class"]
    names = ("clips", "right", "accuracy", "low", "high")
    for number, name in enumerate(classes):
        if columns["clips"][number]:
            yield name, *(columns[column][number] for column in names)


def _class_by_neuron(head: Mapping[str, Any], classes: Sequence[str]) -> Iterable[Sequence[Any]]:
    for layer, found in enumerate(head["layers"]):
        for name, row in zip(classes, found["class_by_neuron"], strict=True):
            yield from (
                (layer + 1, name, neuron + 1, views) for neuron, views in enumerate(row) if views
            )


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
