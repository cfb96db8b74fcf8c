"""Whether probabilities mean what they say: reliability, calibration error, Brier, likelihood.

Enters: class probabilities `[n, K]` and labels `[n]`, of clips (after averaging over views).
Leaves: values per clip, and bins of clips with similar confidence. Confidence is the probability
of the predicted class; a clip counts as right where that class is its label.
Sources: Naeini et al. 2015 and Guo et al. 2017 (equal-width bins), Nguyen and O'Connor 2015
(bins of equal counts), Brier 1950, Broecker and Smith 2007 (what chance alone would give).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.metrics.intervals import wilson_bounds

_SMALLEST = np.finfo(np.float32).tiny  # a probability of 0 that float32 rounded down to
_NUM_CALIBRATED_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of clips by confidence, from low to high.

    Attributes:
        edges: bounds of the bins, float64 `[M + 1]`; a bin holds lower < confidence <= upper.
        counts, right: clips and right answers per bin, int64 `[M]`.
        confidence: mean confidence per bin `[M]`, NaN where a bin is empty.
    """

    edges: np.ndarray
    counts: np.ndarray
    right: np.ndarray
    confidence: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """|share of right answers - mean confidence| per bin `[M]`, 0 where a bin is empty."""
        accuracy = self.right / np.maximum(self.counts, 1)
        return np.where(self.counts > 0, np.abs(accuracy - np.nan_to_num(self.confidence)), 0.0)

    @property
    def expected_error(self) -> float:
        """ECE = sum_b (n_b / n) |accuracy_b - confidence_b|."""
        return float(self.counts @ self.gaps / self.counts.sum())

    @property
    def max_error(self) -> float:
        """The largest gap of a bin that has clips."""
        return float(self.gaps.max())


def equal_width_edges(num_bins: int) -> np.ndarray:
    """`num_bins` bins of the same width over (0, 1], as Guo et al. have them."""
    return np.linspace(0.0, 1.0, num_bins + 1)


def equal_count_edges(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """Bins with about the same number of clips; fewer than `num_bins` where values repeat."""
    inner = np.quantile(confidence, np.linspace(0, 1, num_bins + 1)[1:-1])
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def reliability(confidence: np.ndarray, hits: np.ndarray, edges: np.ndarray) -> Reliability:
    """Sort clips into the bins between `edges`; see `Reliability`."""
    number = bin_numbers(confidence, edges)
    num_bins = len(edges) - 1
    counts = np.bincount(number, minlength=num_bins)
    total = np.bincount(number, weights=confidence, minlength=num_bins)
    mean = np.divide(total, counts, out=np.full(num_bins, np.nan), where=counts > 0)
    right = np.bincount(number, weights=hits, minlength=num_bins).astype(np.int64)
    return Reliability(np.asarray(edges), counts, right, mean)


def bin_numbers(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each value, int64 `[n]`: lower < value <= upper; 0 belongs to the first."""
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


def expected_error_if_calibrated(
    confidence: np.ndarray, edges: np.ndarray, seed: int
) -> tuple[float, float]:
    """Mean and 97.5 % point of the ECE of n clips whose confidence is exactly right.

    The ECE of a perfectly calibrated head isn't zero: bins hold few clips, and its gaps are
    absolute. Hits are drawn with the given confidences as probabilities, 1,000 times.
    """
    number = bin_numbers(confidence, edges)
    num_bins = len(edges) - 1
    generator = np.random.default_rng(seed)
    errors = np.empty(_NUM_CALIBRATED_DRAWS)
    for draw in range(_NUM_CALIBRATED_DRAWS):
        hits = generator.random(len(confidence)) < confidence
        gaps = np.bincount(number, weights=hits - confidence, minlength=num_bins)
        errors[draw] = np.abs(gaps).sum() / len(confidence)
    return float(errors.mean()), float(np.quantile(errors, 0.975))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-ln p(true class) per clip, in nats `[n]`; probabilities that are 0 count as 1.2e-38."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(own, _SMALLEST))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """sum_k (p_k - [k is true])^2 per clip, 0..2 `[n]`, as Brier had it, not half of it."""
    squares = (probabilities.astype(np.float64) ** 2).sum(axis=1)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return squares - 2 * own + 1


def describe_calibration(
    probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int, confidence: float, seed: int
) -> dict[str, Any]:
    """What metrics.json says of a head under "calibration".

    torchmetrics' calibration error is the tests' oracle and not used here: it returns the error
    alone, without the bins that a reliability plot needs, and has no bins of equal counts.

    Args:
        num_bins: M.
        confidence: of the intervals of a bin's accuracy.
        seed: of the draws of a calibrated head.
    """
    stated = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    kinds = {
        "equal_width": equal_width_edges(num_bins),
        "equal_count": equal_count_edges(stated, num_bins),
    }
    found: dict[str, Any] = {"mean_confidence": float(stated.mean()), "num_bins": num_bins}
    for name, edges in kinds.items():
        bins = reliability(stated, hits, edges)
        mean, high = expected_error_if_calibrated(stated, edges, seed)
        found[name] = {
            "ece": bins.expected_error,
            "max_error": bins.max_error,
            "ece_if_calibrated": mean,
            "ece_if_calibrated_high": high,
            "bins": _bin_rows(bins, confidence),
        }
    return found


def _bin_rows(bins: Reliability, confidence: float) -> list[dict[str, Any]]:
    low, high = wilson_bounds(bins.right, bins.counts, confidence)
    return [
        {
            "lower": float(bins.edges[b]),
            "upper": float(bins.edges[b + 1]),
            "clips": int(bins.counts[b]),
            "right": int(bins.right[b]),
            "confidence": float(bins.confidence[b]),
            "accuracy": float(bins.right[b] / bins.counts[b]),
            "accuracy_low": float(low[b]),
            "accuracy_high": float(high[b]),
        }
        for b in np.flatnonzero(bins.counts)
    ]
