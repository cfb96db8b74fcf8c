"""The table of results on a terminal: percent, intervals, denominators.

Enters: the dictionary of metrics.json. Leaves: a rich table, plain text when piped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsts_pipeline.base.files import csv_text
from dsts_pipeline.metrics.predictions import Predictions

MIN_COLUMNS = 118


def ordered_heads(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Heads of metrics.json as (name, figures), in the order they were evaluated in."""
    return sorted(metrics["heads"].items(), key=lambda item: item[1].get("position", 0))


def results_table(metrics: Mapping[str, Any]) -> Table:
    """One row a head; the caption says how many clips were evaluated, failed and missing."""
    confidence = metrics.get("interval", {}).get("confidence", 0.95)
    table = Table(
        title=f"Results on the {metrics['split']} split (percent, {confidence:.0%} intervals)",
        caption=denominator_sentence(metrics),
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("head", no_wrap=True)
    for heading in ("top-1", "top-5", "class-wise", "parameters", "top-1 vs baseline"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, head in ordered_heads(metrics):
        table.add_row(
            Text(head["title"]),
            _with_interval(head, "top1"),
            f"{100 * head['top5']:.1f}",
            _with_interval(head, "class_wise"),
            f"{head['num_parameters']:,}",
            difference_text(head.get("versus_baseline")),
        )
    return table


def print_results(metrics: Mapping[str, Any]) -> Console:
    """Print the table, wide enough for all figures; returns the console, for more lines."""
    console = Console(width=max(MIN_COLUMNS, Console().width))
    console.print(results_table(metrics))
    return console


def denominator_sentence(metrics: Mapping[str, Any]) -> str:
    """Such as "1,195 of 1,200 clips evaluated; 4 failed to decode, 1 missing or unusable."

    Where clips have several views, a second sentence tells how many and which clips lack some.
    """
    evaluated, failed, missing = (metrics[key] for key in ("evaluated", "failed", "missing"))
    return (
        f"{evaluated:,} of {evaluated + failed + missing:,} clips evaluated; "
        f"{failed:,} failed to decode, {missing:,} missing or unusable.{_view_sentence(metrics)}"
    )


def _view_sentence(metrics: Mapping[str, Any]) -> str:
    if not (views := metrics.get("views")):
        return ""
    lacking = [clip["id"] for clip in views["incomplete"]]
    named = f" ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})" if lacking else ""
    return (
        f" Probabilities are averaged over {views['per_clip']} views a clip; "
        f"clips with fewer: {len(lacking):,}{named}."
    )


def difference_text(versus: Mapping[str, Any] | None) -> str:
    """Such as "+1.2 (-0.3 to +2.7)" in percentage points; a dash where there is none."""
    if versus is None:
        return "-"
    value, low, high = (100 * versus[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{_signed(value)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0: "+0.0", never "-0.0"


def _with_interval(head: Mapping[str, Any], name: str) -> str:
    value, low, high = (100 * head[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


# ---- The report's figures as small tables, for `dvc plots show` and `dvc plots diff`. -----------
#
# Enters: the dictionary of metrics.json and each head's predictions. Leaves: CSV text by file name.

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
