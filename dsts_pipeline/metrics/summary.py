"""The figures of one evaluation: metrics.json, its table on a terminal, and tables for plots.

Enters: predictions per head with what else belongs to a head, and the denominators.
Leaves: plain numbers and strings, ready for JSON, and texts that are made of them. Accuracies are
fractions in JSON, 0..1, and percent where people read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import csv_text
from dsts_pipeline.metrics.accuracy import (
    attribute_hits,
    check_attributes,
    class_columns,
    confusion_matrix,
    value_columns,
)
from dsts_pipeline.metrics.calibration import (
    brier_score,
    describe_calibration,
    negative_log_likelihood,
)
from dsts_pipeline.metrics.comparison import compare_predictions
from dsts_pipeline.metrics.enough import find_left_out
from dsts_pipeline.metrics.intervals import Bootstrap, mcnemar, paired_difference
from dsts_pipeline.metrics.predictions import Denominators, HeadResult, Predictions, align
from dsts_pipeline.metrics.routing import describe_use, neuron_usage

# ---- metrics.json -------------------------------------------------------------------------------


def assemble_metrics(
    heads: Mapping[str, HeadResult],
    *,
    denominators: Denominators,
    split: str,
    store: str,
    bootstrap: Bootstrap,
    attribute_names: Sequence[str] = (),
    attributes: Sequence[Sequence[str]] = (),
    class_names: Sequence[str] = (),
    baseline: str = "baseline",
    num_bins: int = 15,
    provenance: Mapping[str, Any] | None = None,
    views: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        heads: by short name, in the order of the tables.
        split: the evaluated split, such as "test".
        store: fingerprint of the feature store.
        attributes: per class, aligned with `attribute_names`; empty if there are none.
        class_names: K names, for readers of the file; numbers where empty.
        baseline: the head that others are compared with, clip by clip; skipped if absent.
        num_bins: of calibration.
        provenance: commit, settings, versions; put into the result under "provenance".
        views: see `ViewCounts.describe`; put into the result where it is given.

    Returns:
        What docs/results-format.md says of metrics.json.

    Raises:
        DataError: No heads, different clips, or a count that disagrees with the predictions.
    """
    if not heads:
        raise DataError("no heads to evaluate; run `python cli.py train-head` first")
    for name, head in heads.items():
        if len(head.predictions) != denominators.evaluated:
            raise DataError(
                f"head {name!r} has predictions for {len(head.predictions)} clips, "
                f"expected {denominators.evaluated}; evaluate all heads on the same split"
            )
        check_attributes(attribute_names, attributes, head.predictions.num_classes)
    num_classes = next(iter(heads.values())).predictions.num_classes
    if class_names and len(class_names) != num_classes:
        raise DataError(f"{len(class_names)} class names for {num_classes} classes")
    base = heads.get(baseline)
    labels = next(iter(heads.values())).predictions.labels
    left_out = find_left_out(
        np.bincount(labels, minlength=num_classes).tolist(),
        split=split,
        num_bins=num_bins,
        num_neurons=max((head.num_neurons or 0 for head in heads.values()), default=0) or None,
    )
    return {
        "heads": {
            name: _accuracies(head.predictions, bootstrap)
            | {
                "title": head.title,
                "num_parameters": int(head.num_parameters),
                "position": position,  # JSON files here have sorted keys
                "routing": _routing(name, head),
                "attributes": _attributes(head.predictions, attribute_names, attributes, bootstrap),
                "versus_baseline": (
                    None if base is None or base is head else _versus(head, base, bootstrap)
                ),
                "calibration": describe_calibration(
                    head.predictions.probabilities,
                    head.predictions.labels,
                    num_bins=num_bins,
                    confidence=bootstrap.confidence,
                    seed=bootstrap.seed,
                ),
            }
            for position, (name, head) in enumerate(heads.items())
        },
        "baseline": baseline if base is not None else None,
        "comparisons": [
            # The later head first, since differences are first minus second.
            {"first_head": first, "second_head": second}
            | compare_predictions(
                heads[first].predictions,
                heads[second].predictions,
                bootstrap,
                attribute_names=attribute_names,
                attributes=attributes,
            )
            for second, first in combinations(heads, 2)
        ],
        "classes": list(class_names) or [str(number) for number in range(num_classes)],
        "evaluated": denominators.evaluated,
        "failed": denominators.failed,
        "missing": denominators.missing,
        "split": split,
        "store": store,
        "interval": {
            "method": "percentile bootstrap by clip",
            "num_resamples": bootstrap.num_resamples,
            "confidence": bootstrap.confidence,
            "seed": bootstrap.seed,
        },
        "provenance": dict(provenance or {}),
        **({"left_out": left_out} if left_out else {}),
        **({"views": dict(views)} if views else {}),
    }


def _accuracies(predictions: Predictions, bootstrap: Bootstrap) -> dict[str, Any]:
    labels = predictions.labels
    num_classes = predictions.num_classes
    hits = predictions.hits()
    columns = {
        "top1": hits,
        "top5": predictions.hits(5),
        "nll": negative_log_likelihood(predictions.probabilities, labels),
        "brier": brier_score(predictions.probabilities, labels),
    }
    intervals = bootstrap.intervals_of_means(np.stack(list(columns.values()), axis=1))
    found: dict[str, Any] = {}
    for name, interval in zip(columns, intervals, strict=True):
        found |= interval.fields(name)
    found |= bootstrap.interval_of_class_mean(hits, labels, num_classes).fields("class_wise")
    answers = predictions.predicted
    per_class = class_columns(answers == labels, labels, answers, num_classes, bootstrap.confidence)
    return found | {"per_class": per_class}


def _attributes(
    predictions: Predictions,
    names: Sequence[str],
    attributes: Sequence[Sequence[str]],
    bootstrap: Bootstrap,
) -> dict[str, Any] | None:
    if not attributes:
        return None
    labels = predictions.labels
    hits = attribute_hits(predictions.predicted, labels, attributes)
    found: dict[str, Any] = {}
    for i, (name, interval) in enumerate(
        zip(names, bootstrap.intervals_of_means(hits), strict=True)
    ):
        values = [row[i] for row in attributes]
        found[name] = interval.fields("accuracy") | {
            "clips": len(labels),
            "right": int(hits[:, i].sum()),
            "values": value_columns(hits[:, i], labels, values, bootstrap.confidence),
        }
    return found


def _versus(head: HeadResult, base: HeadResult, bootstrap: Bootstrap) -> dict[str, Any]:
    hits = align(base.predictions, head.predictions).hits()
    base_hits = base.predictions.hits()
    gained = int((hits & ~base_hits).sum())
    lost = int((base_hits & ~hits).sum())
    return paired_difference(hits, base_hits, bootstrap).fields("difference") | {
        "only_head_right": gained,
        "only_baseline_right": lost,
        "mcnemar": mcnemar(gained, lost),
    }


def _routing(name: str, head: HeadResult) -> dict[str, Any] | None:
    if head.predictions.neurons is None:
        return None
    if head.num_neurons is None:
        raise ValueError(f"head {name!r} has chosen neurons but no num_neurons")
    usage = neuron_usage(head.predictions.routes()[0], head.num_neurons)
    shares: list[list[float] | None] = [None] * len(usage)
    if head.temporal_share is not None:
        gates = np.asarray(head.temporal_share, np.float64)
        if gates.shape != usage.shape:
            raise ValueError(f"head {name!r}: temporal_share {gates.shape}, expected {usage.shape}")
        shares = gates.tolist()
    return {
        "num_neurons": head.num_neurons,
        "layers": [
            describe_use(row) | {"temporal_share": share}
            for row, share in zip(usage, shares, strict=True)
        ],
    }


# ---- the few figures that fit one line, for `dvc metrics show` and `dvc exp show` ---------------


def headline_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 and class-wise accuracy by head, and how many clips they rest on.

    Args:
        metrics: what `assemble_metrics` returns.

    Returns:
        {head: {"top1", "class_wise"}, ..., "evaluated", "failed", "missing"}; fractions, 0..1.
    """
    figures: dict[str, Any] = {
        name: {"top1": head["top1"], "class_wise": head["class_wise"]}
        for name, head in metrics["heads"].items()
    }
    return figures | {name: metrics[name] for name in ("evaluated", "failed", "missing")}


# ---- the table on a terminal: percent, intervals, denominators ----------------------------------

MIN_COLUMNS = 118


def ordered_heads(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Heads of metrics.json as (name, figures), in the order they were evaluated in."""
    return sorted(metrics["heads"].items(), key=lambda item: item[1].get("position", 0))


def print_results(metrics: Mapping[str, Any]) -> Console:
    """Print the table, wide enough for all figures; returns the console, for more lines."""
    console = Console(width=max(MIN_COLUMNS, Console().width), markup=False)
    console.print(results_table(metrics))
    return console


def results_table(metrics: Mapping[str, Any]) -> Table:
    """One row a head; the caption says how many clips were evaluated, failed and missing, and which
    figures so few clips can't bear."""
    confidence = metrics.get("interval", {}).get("confidence", 0.95)
    of_intervals = f", {confidence:.0%} intervals"
    if "intervals" in metrics.get("left_out", {}):
        of_intervals = ""
    table = Table(
        title=f"Results on the {metrics['split']} split (percent{of_intervals})",
        caption="\n".join([denominator_sentence(metrics), *_left_out_lines(metrics)]),
        caption_justify="left",
        title_justify="left",
    )
    left_out = metrics.get("left_out", {})
    ends = ("",) if "intervals" in left_out else ("", "_low", "_high")
    top5 = () if "top5" in left_out else ("top-5",)
    heads = ordered_heads(metrics)
    against: tuple[str, ...] = ()
    if any(head.get("versus_baseline") for _, head in heads):
        against = ("top-1 vs baseline",)
    table.add_column("head", no_wrap=True)
    for heading in ("top-1", *top5, "class-wise", "parameters", *against):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, head in heads:
        versus = head.get("versus_baseline")
        table.add_row(
            Text(head["title"]),
            _with_interval(head, "top1", ends),
            *(f"{100 * head['top5']:.1f}" for _ in top5),
            _with_interval(head, "class_wise", ends),
            f"{head['num_parameters']:,}",
            *("-" if versus is None else _points_of(versus, ends) for _ in against),
        )
    return table


def denominator_sentence(metrics: Mapping[str, Any]) -> str:
    """Such as "1,195 of 1,200 clips evaluated; 4 failed to decode, 1 missing or unusable."

    Where clips have several views, a second sentence tells how many and which clips lack some.
    """
    evaluated, failed, missing = (metrics[key] for key in ("evaluated", "failed", "missing"))
    return (
        f"{evaluated:,} of {evaluated + failed + missing:,} clips evaluated; "
        f"{failed:,} failed to decode, {missing:,} missing or unusable.{_view_sentence(metrics)}"
    )


def _left_out_lines(metrics: Mapping[str, Any]) -> list[str]:
    reasons = list(metrics.get("left_out", {}).values())
    return [f"Left out: {'; '.join(reasons)}."] if reasons else []


def _view_sentence(metrics: Mapping[str, Any]) -> str:
    if not (views := metrics.get("views")):
        return ""
    joined = views.get("joined", 1)
    told = f" Each map is of {joined} views, joined in time." if joined > 1 else ""
    if views["per_clip"] == 1:
        return told
    lacking = [clip["id"] for clip in views["incomplete"]]
    named = f" ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})" if lacking else ""
    return (
        f"{told} Probabilities are averaged over {views['per_clip']} views a clip; "
        f"clips with fewer: {len(lacking):,}{named}."
    )


def points_text(value: float, low: float | None, high: float | None) -> str:
    """A difference of fractions in percentage points, such as "+1.2 (-0.3 to +2.7)"."""
    # + 0.0: "+0.0", never "-0.0".
    text, *ends = (f"{round(100 * x, 1) + 0.0:+.1f}" for x in (value, low, high) if x is not None)
    return f"{text} ({' to '.join(ends)})" if ends else text


def _points_of(versus: Mapping[str, Any], ends: Sequence[str]) -> str:
    value, *bounds = (versus[f"difference{end}"] for end in ends)
    return points_text(value, *(bounds or (None, None)))


def _with_interval(head: Mapping[str, Any], name: str, ends: Sequence[str]) -> str:
    value, *bounds = (f"{100 * head[f'{name}{end}']:.1f}" for end in ends)
    return f"{value} ({'-'.join(bounds)})" if bounds else value


# ---- the report's figures as small tables, for `dvc plots show` and `dvc plots diff` ------------

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
    classes = metrics["classes"]
    heads = ordered_heads(metrics)
    left_out = metrics.get("left_out", {})
    figures = [name for name in ("top1", "top5", "class_wise") if name not in left_out]
    routed = (routing or {"heads": {}})["heads"].items()
    tables = {
        "heads.csv": csv_text(("head", "figure", "value", "low", "high"), _heads(heads, figures)),
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
    counts = confusion_matrix(answers.labels, answers.predicted, len(classes))
    for actual, predicted in np.argwhere(counts):
        yield name, classes[actual], classes[predicted], int(counts[actual, predicted])


def _heads(heads: _Heads, figures: Sequence[str]) -> Iterable[Sequence[Any]]:
    for name, head in heads:
        for figure in figures:
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
