"""One dictionary with every figure of a run: the content of metrics.json.

Enters: predictions per head with what else belongs to a head, and the denominators.
Leaves: plain numbers and strings, ready for JSON. Accuracies are fractions, 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.accuracy import (
    attribute_hits,
    check_attributes,
    class_columns,
    class_wise_accuracy,
    top_k_hits,
    value_columns,
)
from dsts_pipeline.metrics.calibration import (
    brier_score,
    describe_calibration,
    negative_log_likelihood,
)
from dsts_pipeline.metrics.comparison import compare_predictions
from dsts_pipeline.metrics.intervals import Bootstrap, Interval, mcnemar, paired_difference
from dsts_pipeline.metrics.predictions import Denominators, HeadResult, Predictions, align
from dsts_pipeline.metrics.routing import dead_neurons, neuron_usage, usage_entropy


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
    base = heads.get(baseline)
    return {
        "heads": {
            name: _accuracies(head.predictions, bootstrap)
            | _identity(head, position)
            | {"routing": _routing(name, head)}
            | {"attributes": _attributes(head.predictions, attribute_names, attributes, bootstrap)}
            | {"versus_baseline": _versus(head, base, bootstrap)}
            | _details(head.predictions, bootstrap, num_bins)
            for position, (name, head) in enumerate(heads.items())
        },
        "baseline": baseline if base is not None else None,
        "comparisons": _comparisons(heads, bootstrap, attribute_names, attributes),
        "classes": _class_names(class_names, next(iter(heads.values())).predictions),
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
    } | ({"views": dict(views)} if views else {})


def _identity(head: HeadResult, position: int) -> dict[str, Any]:
    # The order is kept as a number, because JSON files here have sorted keys.
    return {
        "title": head.title,
        "num_parameters": int(head.num_parameters),
        "position": position,
    }


def _class_names(names: Sequence[str], predictions: Predictions) -> list[str]:
    if names and len(names) != predictions.num_classes:
        raise DataError(f"{len(names)} class names for {predictions.num_classes} classes")
    return list(names) or [str(number) for number in range(predictions.num_classes)]


def _comparisons(
    heads: Mapping[str, HeadResult],
    bootstrap: Bootstrap,
    names: Sequence[str],
    attributes: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """Every pair of heads, the later one first, since differences are first minus second."""
    return [
        {"first_head": first, "second_head": second}
        | compare_predictions(
            heads[first].predictions,
            heads[second].predictions,
            bootstrap,
            attribute_names=names,
            attributes=attributes,
        )
        for second, first in combinations(heads, 2)
    ]


def _accuracies(predictions: Predictions, bootstrap: Bootstrap) -> dict[str, float]:
    labels, probabilities = predictions.labels, predictions.probabilities
    columns = {
        "top1": (hits := top_k_hits(probabilities, labels, 1)),
        "top5": top_k_hits(probabilities, labels, 5),
        "nll": negative_log_likelihood(probabilities, labels),
        "brier": brier_score(probabilities, labels),
    }
    intervals = bootstrap.intervals_of_means(np.stack(list(columns.values()), axis=1))
    class_wise = bootstrap.interval_of_class_mean(hits, labels, predictions.num_classes)
    found = _fields("class_wise", class_wise)
    assert abs(class_wise.value - class_wise_accuracy(hits, labels, predictions.num_classes)) < 1e-9
    for name, interval in zip(columns, intervals, strict=True):
        found |= _fields(name, interval)
    return found


def _details(predictions: Predictions, bootstrap: Bootstrap, num_bins: int) -> dict[str, Any]:
    labels, answers = predictions.labels, predictions.predicted
    return {
        "calibration": describe_calibration(
            predictions.probabilities,
            labels,
            num_bins=num_bins,
            confidence=bootstrap.confidence,
            seed=bootstrap.seed,
        ),
        "per_class": class_columns(
            answers == labels, labels, answers, predictions.num_classes, bootstrap.confidence
        ),
    }


def _fields(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


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
        found[name] = _fields("accuracy", interval) | {
            "clips": len(labels),
            "right": int(hits[:, i].sum()),
            "values": value_columns(hits[:, i], labels, values, bootstrap.confidence),
        }
    return found


def _versus(
    head: HeadResult, base: HeadResult | None, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    if base is None or base is head:
        return None
    other = align(base.predictions, head.predictions)
    hits = top_k_hits(other.probabilities, other.labels, 1)
    base_hits = top_k_hits(base.predictions.probabilities, base.predictions.labels, 1)
    difference = paired_difference(hits, base_hits, bootstrap)
    gained, lost = int((hits & ~base_hits).sum()), int((base_hits & ~hits).sum())
    return _fields("difference", difference) | {
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
            {
                "usage": row.tolist(),
                "entropy": float(usage_entropy(row)),
                "dead": int(dead_neurons(row)),
                "temporal_share": share,
            }
            for row, share in zip(usage, shares, strict=True)
        ],
    }
