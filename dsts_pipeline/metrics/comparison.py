"""Two sets of answers to the same clips, compared: which is better, where, and how surely.

Enters: predictions of two heads or two runs. Leaves: a dictionary, ready for JSON.

All of it covers the choice of test clips. It says nothing of what another training seed would
give: two runs that differ only in the seed can differ "significantly" here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.accuracy import attribute_hits, check_attributes, class_wise_accuracy
from dsts_pipeline.metrics.calibration import negative_log_likelihood
from dsts_pipeline.metrics.intervals import Bootstrap, Interval, holm, mcnemar, mcnemar_exact
from dsts_pipeline.metrics.predictions import Predictions, align


def compare_predictions(
    first: Predictions,
    second: Predictions,
    bootstrap: Bootstrap,
    *,
    attribute_names: Sequence[str] = (),
    attributes: Sequence[Sequence[str]] = (),
    different_clips: Literal["error", "common"] = "error",
) -> dict[str, Any]:
    """Compare two heads or runs clip by clip; every difference is first minus second.

    Args:
        first, second: answers on the same clips, in any order. Heads, classes' order and data set
            must be the same; stores and trainings need not be.
        bootstrap: resamples clips, both heads' answers together.
        attribute_names, attributes: per class, as in `assemble_metrics`; empty to leave them out.
        different_clips: "common" compares the clips that both have, and counts the others under
            "only_in_first" and "only_in_second"; "error" refuses.

    Returns:
        - "clips": compared; "only_in_first", "only_in_second": not compared.
        - "top1", "top5", "class_wise", "nll": each {"first", "second", "difference",
          "difference_low", "difference_high"}, by the paired bootstrap.
        - "both_right", "only_first_right", "only_second_right", "both_wrong": clips.
        - "same_answer": share of clips that are given the same class.
        - "mcnemar": see `intervals.mcnemar`; of top-1.
        - "per_class": columns of K entries "clips", "first", "second" (right clips), "difference"
          (of accuracies, None without clips), "p" (exact McNemar) and "p_holm" (over all
          classes that have clips).
        - "attributes": per attribute as for "top1", or None.

    Raises:
        DataError: Clips differ (see `different_clips`), or labels or numbers of classes do.
    """
    if first.num_classes != second.num_classes:
        raise DataError(
            f"predictions are for {first.num_classes} and {second.num_classes} classes; "
            "compare runs of the same data set"
        )
    check_attributes(attribute_names, attributes, first.num_classes)
    sizes = len(first), len(second)
    if different_clips == "common":
        shared = set(first.clip_ids) & set(second.clip_ids)
        if not shared:
            raise DataError("the two runs have no clip in common; compare runs of the same split")
        first = first.of_clips(shared)
        second = second.of_clips(shared)
    second = align(first, second)
    hits = first.hits()
    other_hits = second.hits()
    only_first = int((hits & ~other_hits).sum())
    only_second = int((other_hits & ~hits).sum())
    return _figures(first, second, bootstrap) | {
        "clips": len(first),
        "only_in_first": sizes[0] - len(first),
        "only_in_second": sizes[1] - len(second),
        "both_right": int((hits & other_hits).sum()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "both_wrong": int((~hits & ~other_hits).sum()),
        "mcnemar": mcnemar(only_first, only_second),
        "same_answer": float((first.predicted == second.predicted).mean()),
        "per_class": _per_class(hits, other_hits, first.labels, first.num_classes),
        "attributes": _attributes(first, second, bootstrap, attribute_names, attributes),
    }


def _figures(first: Predictions, second: Predictions, bootstrap: Bootstrap) -> dict[str, Any]:
    labels = first.labels
    values, others = (
        np.stack(
            [each.hits(1), each.hits(5), negative_log_likelihood(each.probabilities, labels)],
            axis=1,
        )
        for each in (first, second)
    )
    intervals = bootstrap.intervals_of_means(values - others)
    figures = {
        name: _figure(values[:, i].mean(), others[:, i].mean(), intervals[i])
        for i, name in enumerate(("top1", "top5", "nll"))
    }
    mine, other = (
        class_wise_accuracy(v[:, 0], labels, first.num_classes) for v in (values, others)
    )
    apart = bootstrap.interval_of_class_mean(values[:, 0] - others[:, 0], labels, first.num_classes)
    return figures | {"class_wise": _figure(mine, other, apart)}


def _figure(first: float, second: float, difference: Interval) -> dict[str, float]:
    return {"first": float(first), "second": float(second)} | difference.fields("difference")


def _per_class(
    hits: np.ndarray, other_hits: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, list[Any]]:
    clips, right, other, gained, lost = (
        np.bincount(labels, weights=weights, minlength=num_classes).astype(np.int64)
        for weights in (None, hits, other_hits, hits & ~other_hits, other_hits & ~hits)
    )
    there = clips > 0
    p = np.ones(num_classes)
    p_holm = np.ones(num_classes)
    p[there] = mcnemar_exact(gained[there], lost[there])
    p_holm[there] = holm(p[there])
    differences = (right - other) / np.maximum(clips, 1)
    return {
        "clips": clips.tolist(),
        "first": right.tolist(),
        "second": other.tolist(),
        "difference": [float(d) if t else None for d, t in zip(differences, there, strict=True)],
        "p": p.tolist(),
        "p_holm": p_holm.tolist(),
    }


def _attributes(
    first: Predictions,
    second: Predictions,
    bootstrap: Bootstrap,
    names: Sequence[str],
    attributes: Sequence[Sequence[str]],
) -> dict[str, Any] | None:
    if not attributes:
        return None
    hits, others = (
        attribute_hits(each.predicted, each.labels, attributes) for each in (first, second)
    )
    apart = bootstrap.intervals_of_means(hits.astype(np.float64) - others)
    return {
        name: _figure(hits[:, i].mean(), others[:, i].mean(), apart[i])
        for i, name in enumerate(names)
    }
