"""Hard pairs of classes: which ones a head keeps apart and another does not.

Enters: labels and the classes that both heads predicted, one row a clip.
Leaves: unordered pairs of classes, ranked by how many clips fewer are taken for the other class.

A clip of class i is confused within the pair {i, j} by a head that answers j. For a pair, only
clips confused by just one of the two heads tell the heads apart; given their number, each is as
likely either way if the heads are equally good (McNemar's exact test).
Multiplicity: every pair with at least one such clip is tested, and p-values are adjusted over all
of them by Holm's method. A pair without any has p = 1 and could not have been found, so leaving it
out is fair: the choice looks at how many such clips there are, not at which head they speak for.
Intervals of the ranked pairs are NOT adjusted: they belong to the pairs that look best, which as a
rule look better than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsts_pipeline.metrics.intervals import Bootstrap
from dsts_pipeline.metrics.significance import holm, mcnemar_exact


def describe_pairs(
    labels: np.ndarray,
    predicted: np.ndarray,
    base_predicted: np.ndarray,
    class_names: Sequence[str],
    bootstrap: Bootstrap,
    limit: int,
) -> dict[str, Any]:
    """What routing.json says under "hard_pairs" of a head against a baseline.

    Returns:
        "num_pairs": unordered pairs of classes that both have clips; "num_tested": those with at
        least one clip that just one head confuses; "correction": "holm"; "separated": pairs that
        the head keeps apart better, the most clips first; "merged": those it keeps apart worse.
        Each pair: "first", "second" (class numbers), "names", "clips" of both classes,
        "baseline_confused" and "head_confused" (clips), "only_baseline", "only_head" (confused by
        that head alone), "difference" of the shares confused, baseline minus head, with "_low"
        and "_high" (paired bootstrap over the pair's clips), "p" and "p_holm".
    """
    num_classes = len(class_names)
    base_only = _pair_counts(labels, base_predicted, base_predicted != predicted, num_classes)
    head_only = _pair_counts(labels, predicted, base_predicted != predicted, num_classes)
    tested = np.argwhere(base_only + head_only > 0)
    gained, lost = base_only[tuple(tested.T)], head_only[tuple(tested.T)]
    p = mcnemar_exact(gained, lost) if len(tested) else np.empty(0)
    adjusted = holm(p)
    balance = gained - lost
    order = np.lexsort((np.arange(len(p)), p, -np.abs(balance)))

    def row(place: int) -> dict[str, Any]:
        i, j = (int(number) for number in tested[place])
        rows = np.flatnonzero((labels == i) | (labels == j))
        other = np.where(labels[rows] == i, j, i)
        base_wrong, head_wrong = base_predicted[rows] == other, predicted[rows] == other
        apart = bootstrap.interval_of_mean(base_wrong.astype(np.float64) - head_wrong)
        return {
            "first": i,
            "second": j,
            "names": [class_names[i], class_names[j]],
            "clips": len(rows),
            "baseline_confused": int(base_wrong.sum()),
            "head_confused": int(head_wrong.sum()),
            "only_baseline": int(gained[place]),
            "only_head": int(lost[place]),
            "difference": apart.value,
            "difference_low": apart.low,
            "difference_high": apart.high,
            "p": float(p[place]),
            "p_holm": float(adjusted[place]),
        }

    better, worse = (order[sign * balance[order] > 0][:limit] for sign in (1, -1))
    there = int((np.bincount(labels, minlength=num_classes) > 0).sum())
    return {
        "num_pairs": there * (there - 1) // 2,
        "num_tested": len(tested),
        "correction": "holm",
        "separated": [row(place) for place in better],
        "merged": [row(place) for place in worse],
    }


def _pair_counts(
    labels: np.ndarray, predicted: np.ndarray, counted: np.ndarray, num_classes: int
) -> np.ndarray:
    """Counted clips that were taken for another class, by pair: int64 `[K, K]`, upper triangle."""
    rows = np.flatnonzero(counted & (predicted != labels))
    low, high = np.minimum(labels, predicted)[rows], np.maximum(labels, predicted)[rows]
    return np.bincount(low * num_classes + high, minlength=num_classes**2).reshape(
        num_classes, num_classes
    )
