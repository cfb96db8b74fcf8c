"""One dictionary with every figure of a run: the content of metrics.json.

Enters: predictions per head with what else belongs to a head, and the denominators.
Leaves: plain numbers and strings, ready for JSON. Accuracies are fractions, 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.accuracy import (
    attribute_hits,
    check_attributes,
    class_wise_accuracy,
    top_k_hits,
)
from dsts_pipeline.metrics.intervals import Bootstrap, Interval, paired_difference
from dsts_pipeline.metrics.predictions import Predictions, align
from dsts_pipeline.metrics.routing import dead_neurons, neuron_usage, usage_entropy


@dataclass(frozen=True)
class HeadResult:
    """One head's answers and what the tables say about it.

    Args:
        title: name for people, such as "DSTS head (N = 10, L = 3)".
        predictions: its answers on the split.
        num_parameters: of the head alone, without the backbone.
        num_neurons: N; needed where `predictions.neurons` is given.
        temporal_share: per layer and neuron, the share of channels whose gate is open to the
            temporal operator, `[L][N]`; None where there are no gates.
    """

    title: str
    predictions: Predictions
    num_parameters: int
    num_neurons: int | None = None
    temporal_share: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Denominators:
    """Out of how many: `evaluated` clips have predictions, `failed` could not be decoded or
    extracted (in any view), `missing` are annotated but had no usable file. The three are
    disjoint, and count clips, however many views a clip has."""

    evaluated: int
    failed: int = 0
    missing: int = 0

    @property
    def annotated(self) -> int:
        """All clips that the annotations name for the split."""
        return self.evaluated + self.failed + self.missing


def assemble_metrics(
    heads: Mapping[str, HeadResult],
    *,
    denominators: Denominators,
    split: str,
    store: str,
    bootstrap: Bootstrap,
    attribute_names: Sequence[str] = (),
    attributes: Sequence[Sequence[str]] = (),
    baseline: str = "baseline",
    provenance: Mapping[str, Any] | None = None,
    views: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        heads: by short name, in the order of the tables.
        split: the evaluated split, such as "test".
        store: fingerprint of the feature store.
        attributes: per class, aligned with `attribute_names`; empty if there are none.
        baseline: the head that others are compared with, clip by clip; skipped if absent.
        provenance: commit, settings, versions; put into the result under "provenance".
        views: see `ViewCounts.describe`; put into the result where it is given.

    Returns:
        The dictionary that the contract of metrics.json describes, "versus_baseline" and
        "attributes" included.

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
            for position, (name, head) in enumerate(heads.items())
        },
        "baseline": baseline if base is not None else None,
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


def _accuracies(predictions: Predictions, bootstrap: Bootstrap) -> dict[str, float]:
    labels, num_classes = predictions.labels, predictions.num_classes
    hits = top_k_hits(predictions.probabilities, labels, 1)
    top5 = top_k_hits(predictions.probabilities, labels, 5)
    class_wise = bootstrap.interval_of_class_mean(hits, labels, num_classes)
    assert abs(class_wise.value - class_wise_accuracy(hits, labels, num_classes)) < 1e-9
    return (
        _fields("top1", bootstrap.interval_of_mean(hits))
        | _fields("top5", bootstrap.interval_of_mean(top5))
        | _fields("class_wise", class_wise)
    )


def _fields(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _attributes(
    predictions: Predictions,
    names: Sequence[str],
    attributes: Sequence[Sequence[str]],
    bootstrap: Bootstrap,
) -> dict[str, dict[str, float]] | None:
    if not attributes:
        return None
    hits = attribute_hits(predictions.predicted, predictions.labels, attributes)
    intervals = {name: bootstrap.interval_of_mean(hits[:, i]) for i, name in enumerate(names)}
    return {name: _fields("accuracy", interval) for name, interval in intervals.items()}


def _versus(
    head: HeadResult, base: HeadResult | None, bootstrap: Bootstrap
) -> dict[str, float] | None:
    if base is None or base is head:
        return None
    other = align(base.predictions, head.predictions)
    hits = top_k_hits(other.probabilities, other.labels, 1)
    base_hits = top_k_hits(base.predictions.probabilities, base.predictions.labels, 1)
    difference = paired_difference(hits, base_hits, bootstrap)
    return _fields("difference", difference) | {
        "only_head_right": int((hits & ~base_hits).sum()),
        "only_baseline_right": int((base_hits & ~hits).sum()),
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
