"""How sure a figure is that was measured with a few seeds, and whether two such figures differ.

Enters: one value per seed, or two values per seed of two variants. Leaves: means, standard
deviations, intervals, p-values. Sources: Student 1908; for clips, the paired bootstrap of
`intervals`.

The t interval covers what another seed would give on these clips; the bootstrap covers what other
clips would give with these seeds. Neither covers both. With few seeds the t interval is wide (at 3
seeds t = 4.30), and it assumes that values scatter normally.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from dsts_pipeline.metrics.intervals import Bootstrap

CONFIDENCE = 0.95


def over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, float | None]:
    """`mean`, `std` (with n - 1) and the t interval `mean +- t(n - 1) std / sqrt(n)`.

    With one seed nothing is known of the spread: the others are None.
    """
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return {"mean": mean, "std": None, "low": None, "high": None}
    std = float(found.std(ddof=1))
    half = _t(len(found), confidence) * std / np.sqrt(len(found))
    return {"mean": mean, "std": std, "low": float(mean - half), "high": float(mean + half)}


def paired_over_seeds(
    values: Sequence[float], others: Sequence[float], confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Mean of `values - others`, seed by seed, its t interval and the p-value of no difference.

    Where all differences are equal the t statistic is not defined: p is None (and 1 where they
    are all zero). With one pair interval and p are None.
    """
    if len(values) != len(others):
        raise ValueError(f"{len(values)} and {len(others)} values; expected pairs by seed")
    differences = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    found = over_seeds(differences.tolist(), confidence)
    p_value: float | None = None
    if len(differences) >= 2 and differences.std() > 1e-12:
        p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    elif len(differences) >= 2 and not differences.any():
        p_value = 1.0
    return {
        "difference": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "p_value": p_value,
        "test": "paired t over seeds",
        "num_pairs": len(differences),
    }


def paired_over_clips(hits: np.ndarray, others: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """The same difference with its interval over clips: each clip's mean over seeds, resampled.

    Args:
        hits, others: `[seeds, clips]` of two variants, same seeds and clips in the same order.
    """
    if hits.shape != others.shape:
        raise ValueError(f"hits {hits.shape} and {others.shape}: expected the same seeds and clips")
    by_clip = (hits.astype(np.float64) - others).mean(axis=0)
    interval = bootstrap.interval_of_mean(by_clip)
    return {
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "test": "paired bootstrap over clips, mean of the seeds",
        "num_pairs": int(hits.shape[1]),
    }


def _t(num_values: int, confidence: float) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, num_values - 1))
