"""Gates beside need: do neurons with more temporal channels serve classes that need time more?

Enters: probabilities of the same head on the same maps, in order and with their order in time
taken away (`metrics.time_axis`), gates and chosen neurons, one row a clip.
Leaves: need per class and per neuron.

`need(clip) = p(true class | maps in order) - p(true class | out of order)`: what the head loses.
Choice: the head's own loss, since the baseline and the linear probe pool time away first and lose
nothing by construction. So a neuron's own need isn't independent of its gates: one that uses time
loses more. The need of classes, averaged over the clips a neuron serves, suffers less from that,
and less the more neurons serve a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def true_class_probability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p(true class) per clip, float64 `[n]`."""
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)


def class_need(
    probabilities: np.ndarray, without_time: np.ndarray, labels: np.ndarray
) -> dict[str, list[Any]]:
    """Need of each class, K entries a column; None where a class has no clips.

    Returns:
        "clips", "accuracy" in order, "accuracy_without_time", "accuracy_drop" (their difference),
        "need" (mean of need(clip)).
    """
    num_classes = probabilities.shape[1]
    clips = np.bincount(labels, minlength=num_classes)

    def mean(values: np.ndarray) -> list[float | None]:
        sums = np.bincount(labels, weights=values, minlength=num_classes)
        return [float(s / n) if n else None for s, n in zip(sums, clips, strict=True)]

    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    still = (without_time.argmax(axis=1) == labels).astype(np.float64)
    return {
        "clips": clips.tolist(),
        "accuracy": mean(right),
        "accuracy_without_time": mean(still),
        "accuracy_drop": mean(right - still),
        "need": mean(clip_need(probabilities, without_time, labels)),
    }


def clip_need(
    probabilities: np.ndarray, without_time: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """need(clip), -1..1, float64 `[n]`."""
    kept = true_class_probability(without_time, labels)
    return true_class_probability(probabilities, labels) - kept


def describe_gates(
    temporal_share: Sequence[float],
    neurons: np.ndarray,
    labels: np.ndarray,
    need: np.ndarray | None,
    *,
    num_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """What routing.json says of one layer under "gates".

    Args:
        temporal_share: per neuron, share of channels that go to the temporal operator `[N]`.
        neurons: chosen neuron of each clip, int `[n]`.
        need: need(clip) `[n]`, or None where it was not measured.

    Returns:
        "temporal_share" `[N]`; where need was measured: "clip_need" `[N]`, mean need of the clips
        of each neuron; "class_need" `[N]`, mean over its clips of the need of their class (None for
        dead neurons); "rank_correlation" (Spearman) of temporal_share with class_need over
        neurons that have clips, and its two-sided "p" by permuting neurons; None below 3 neurons or
        where either is constant.
    """
    shares = [float(share) for share in temporal_share]
    if need is None:
        return {"temporal_share": shares}
    of_class = np.bincount(labels, weights=need) / np.maximum(np.bincount(labels), 1)
    counts = np.bincount(neurons, minlength=len(shares))
    own, classes = (
        [
            float(total / count) if count else None
            for total, count in zip(
                np.bincount(neurons, weights=values, minlength=len(shares)), counts, strict=True
            )
        ]
        for values in (need, of_class[labels])
    )
    live = counts > 0
    correlation, p = _rank_correlation(
        np.asarray(shares)[live],
        np.asarray([value for value in classes if value is not None]),
        num_permutations,
        seed,
    )
    return {
        "temporal_share": shares,
        "clip_need": own,
        "class_need": classes,
        "rank_correlation": correlation,
        "p": p,
    }


def _rank_correlation(
    shares: np.ndarray, needs: np.ndarray, num_permutations: int, seed: int
) -> tuple[float | None, float | None]:
    if len(shares) < 3 or np.ptp(shares) < 1e-12 or np.ptp(needs) < 1e-12:
        return None, None
    ranks, others = stats.rankdata(shares), stats.rankdata(needs)
    found = float(np.corrcoef(ranks, others)[0, 1])
    generator = np.random.default_rng(seed)
    draws = [
        np.corrcoef(generator.permutation(ranks), others)[0, 1] for _ in range(num_permutations)
    ]
    as_far = (np.abs(draws) >= abs(found) - 1e-12).sum()
    return found, float((1 + as_far) / (1 + num_permutations))
