"""How sure a figure is, and whether two figures differ: over clips, over seeds, and tests of both.

Enters: hits (bool `[n]`) of one head, or of two heads on the same clips in the same order; counts;
values per seed. Leaves: an `Interval`, value with lower and upper bound, and p-values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dsts_pipeline.base.errors import LazyExtra

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = LazyExtra("scipy.stats", "a comparison")

# ---- over clips: percentile bootstrap, alone and paired; Wilson's bounds for few clips ----------
#
# Clips are drawn n at a time with replacement, `num_resamples` times; the figure is computed on
# each draw, and the bounds are percentiles of the results. It covers the choice of test clips, not
# the randomness of training. Where every clip is right (or wrong) the interval has no width.
# Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 10.

_CHUNK_ELEMENTS = 4_000_000  # at most this many drawn clips in memory at once


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds that hold it in a share `confidence` of the resamples."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def fields(self, name: str) -> dict[str, float]:
        """For JSON: "NAME", "NAME_low" and "NAME_high"."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the resampling; the same seed draws the same clips for every figure."""

    num_resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(f"{self}: expected num_resamples >= 1 and 0 < confidence < 1")

    def interval_of_mean(self, values: np.ndarray) -> Interval:
        """Mean of `values` (`[n]`; hits, or differences of hits) over clips."""
        values = np.asarray(values, np.float64)
        draws = [weights @ values / len(values) for weights in self._draw(len(values))]
        return self.interval_of_draws(float(values.mean()), np.concatenate(draws))

    def intervals_of_means(self, columns: np.ndarray) -> list[Interval]:
        """`interval_of_mean` of each column of `columns [n, F]`, with one set of draws for all."""
        columns = np.asarray(columns, np.float64)
        draws = self.draws_of_sums(columns) / len(columns)
        means = columns.mean(axis=0).tolist()
        return [self.interval_of_draws(m, d) for m, d in zip(means, draws.T, strict=True)]

    def draws_of_sums(self, columns: np.ndarray) -> np.ndarray:
        """Sums of each column of `columns [n, F]` on each draw, float64 `[num_resamples, F]`.

        A sum is linear: a difference of two columns has the difference of their draws. Those of
        whole numbers are exact, so that they are the same on every machine.
        """
        columns = np.asarray(columns, np.float64)
        return np.concatenate([weights @ columns for weights in self._draw(len(columns))])

    def interval_of_draws(self, value: float, draws: np.ndarray) -> Interval:
        """A figure with the percentiles of its values on all draws."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Interval(value, float(low), float(high), self.confidence)

    def interval_of_class_mean(
        self, values: np.ndarray, labels: np.ndarray, num_classes: int
    ) -> Interval:
        """Mean over classes of the mean of `values` over a class's clips.

        Classes without a clip are left out; so are, draw by draw, classes that were not drawn.
        """
        values = np.asarray(values, np.float64)
        present, positions = np.unique(labels, return_inverse=True)
        if len(present) > num_classes:
            raise ValueError(f"labels name {len(present)} classes, expected at most {num_classes}")
        members = np.zeros((len(values), len(present)))
        members[np.arange(len(values)), positions] = 1.0
        sums = members * values[:, None]
        draws = [_class_mean(w @ sums, w @ members) for w in self._draw(len(values))]
        everything = _class_mean(sums.sum(axis=0), members.sum(axis=0))
        return self.interval_of_draws(float(everything), np.concatenate(draws))

    def _draw(self, num_clips: int) -> Iterator[np.ndarray]:
        """How often each clip was drawn, float64 `[r, n]`, in chunks of bounded size."""
        generator = np.random.default_rng(self.seed)
        chunk = max(1, _CHUNK_ELEMENTS // num_clips)
        for start in range(0, self.num_resamples, chunk):
            rows = min(chunk, self.num_resamples - start)
            drawn = generator.integers(num_clips, size=(rows, num_clips))
            drawn += np.arange(rows)[:, None] * num_clips
            counts = np.bincount(drawn.ravel(), minlength=rows * num_clips)
            yield counts.reshape(rows, num_clips).astype(np.float64)


def _class_mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the last axis of sums / counts, over the entries whose count is not zero."""
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return np.nanmean(means, axis=-1)


def wilson_bounds(
    right: np.ndarray, clips: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of the shares right / clips, float64 of their shape, in 0..1.

    `(p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)`. For small groups of clips
    (a class, a bin), where a bootstrap is too narrow, and has no width at all if all are right.
    Bounds are 0 and 1 where there are no clips. Source: Wilson 1927.
    """
    clips = np.asarray(clips, np.float64)
    z = stats.norm.ppf(0.5 + confidence / 2)
    share = np.divide(right, clips, out=np.zeros(clips.shape), where=clips > 0)
    n = np.maximum(clips, 1.0)
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return np.where(clips > 0, low.clip(0, 1), 0.0), np.where(clips > 0, high.clip(0, 1), 1.0)


def paired_difference(
    hits: np.ndarray, baseline_hits: np.ndarray, bootstrap: Bootstrap
) -> Interval:
    """Accuracy of a head minus that of a baseline on the same clips, resampled together.

    Much narrower than the difference of two separate intervals: what is hard for both cancels.
    """
    if hits.shape != baseline_hits.shape:
        raise ValueError(f"hits {hits.shape} and {baseline_hits.shape}: expected the same clips")
    return bootstrap.interval_of_mean(hits.astype(np.float64) - baseline_hits)


# ---- tests on the same clips answered twice, and corrections for many tests at once -------------
#
# Sources: McNemar 1947; Edwards 1948 (continuity correction); Holm 1979.

# Below this many discordant clips the chi-squared approximation isn't trusted (Fagerland 2013).
FEWEST_FOR_CHI2 = 25


def mcnemar(only_first: int, only_second: int) -> dict[str, float | int | str]:
    """Whether two heads have different accuracy, from the clips on which just one is right.

    Exact: both directions are equally likely for each of b + c discordant clips, so that
    `p = min(1, 2 P[Binomial(b + c, 1/2) <= min(b, c)])`. Corrected: `chi2 = (|b - c| - 1)^2 /
    (b + c)` with one degree of freedom.

    Args:
        only_first, only_second: b and c, clips that only the first (second) head has right.

    Returns:
        "discordant" (b + c), "exact_p", "chi2", "chi2_p", and "p" with its "method": "exact" below
        25 discordant clips, "chi2" from there on. Without discordant clips p is 1.
    """
    discordant = only_first + only_second
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts {only_first} and {only_second}: expected none below zero")
    if discordant == 0:
        none = {"exact_p": 1.0, "chi2": 0.0, "chi2_p": 1.0}
        return {"discordant": 0, **none, "p": 1.0, "method": "exact"}
    exact = float(mcnemar_exact(np.array([only_first]), np.array([only_second]))[0])
    chi2 = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
    chi2_p = float(stats.chi2.sf(chi2, df=1))
    large = discordant >= FEWEST_FOR_CHI2
    return {
        "discordant": discordant,
        "exact_p": exact,
        "chi2": float(chi2),
        "chi2_p": chi2_p,
        "p": chi2_p if large else exact,
        "method": "chi2" if large else "exact",
    }


def mcnemar_exact(only_first: np.ndarray, only_second: np.ndarray) -> np.ndarray:
    """The exact two-sided p-value of each pair of counts, float64 of their shape."""
    fewer = np.minimum(only_first, only_second)
    return np.minimum(1.0, 2 * stats.binom.cdf(fewer, only_first + only_second, 0.5))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values such that calling those below alpha different errs with probability <= alpha.

    `adjusted_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))` over the m sorted values: the chance of
    even one false finding among all of them is bounded, whatever their dependence.

    Args:
        p_values: `[m]`, of all tests that were made, not of those that look good.
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = (len(p_values) - np.arange(len(p_values))) * p_values[order]
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


# ---- over seeds ---------------------------------------------------------------------------------
#
# The t interval covers what another seed would give on these clips; the bootstrap covers what other
# clips would give with these seeds. Neither covers both. With few seeds the t interval is wide (at
# 3 seeds t = 4.30), and it assumes that values scatter normally. Source: Student 1908.

CONFIDENCE = 0.95


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """`mean`, `std` (with n - 1) and `low` and `high`, the 95 % t interval.

    `mean +- t(n - 1) std / sqrt(n)`. With one seed all but the mean are None.
    """
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return {"mean": mean, "std": None, "low": None, "high": None}
    std = float(found.std(ddof=1))
    t = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1))
    half = t * std / np.sqrt(len(found))
    return {"mean": mean, "std": std, "low": float(mean - half), "high": float(mean + half)}


def paired_over_seeds(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Mean of `values - others`, seed by seed, its t interval and the p-value of no difference.

    Where all differences are equal the t statistic is not defined: p is None (and 1 where they
    are all zero). With one pair interval and p are None.
    """
    if len(values) != len(others):
        raise ValueError(f"{len(values)} and {len(others)} values; expected pairs by seed")
    differences = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    found = over_seeds(differences.tolist())
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


# ---- over folds and whole groups ----------------------------------------------------------------
#
# A cross-validation answers every clip once, by the head that did not learn from its group. Clip i
# has a value v_i (a hit, or a difference of hits, its mean over the seeds) and a weight w_i, which
# add up to 1: 1/n for accuracy over all clips, 1/(C n_c) for the mean over C classes of n_c clips.
# The figure is `A = sum_i w_i v_i`. Of fold k, `t_k = sum_{i in k} w_i v_i` and `W_k = sum w_i`:
#
#     se^2 = K / (K - 1) sum_k (t_k - A W_k)^2
#
# is the error of a ratio of sums over K clusters; with folds of one size it is that of the mean of
# K accuracies. They are not independent, for any two folds share most of their training clips: as
# if each pair were correlated by the share of clips that a fold holds out, 1 / K, the variance
# grows by
#
#     c^2 = 1 + K (1/K) / (1 - 1/K) = 1 + K / (K - 1)
#
# (Nadeau and Bengio 2003), and the interval is `A +- t(K - 1) c se`: 1.5 times as wide as
# Student's with five folds, 1.45 times with ten.
#
# Choice: seeds are averaged first, so that n is the number of folds. Trainings of several seeds on
# one fold answer the same clips after learning from the same ones: counted one by one, they would
# promise a certainty that more seeds can't give. The correction is a rule of thumb: no estimate of
# the variance from one cross-validation is unbiased (Bengio and Grandvalet 2004), but without it
# the t test finds differences that are not there too often (Dietterich 1998). The bootstrap draws
# whole groups in place of clips: those of a player are alike. It covers other players with these
# heads; the interval over folds also covers other training sets.
# Sources: Cochran, Sampling Techniques, 1977, 6.4; Davison and Hinkley 1997, 3.8; Nadeau and
# Bengio, Inference for the generalization error, Machine Learning 52, 2003.


def over_folds(
    values: np.ndarray, weights: np.ndarray, folds: np.ndarray
) -> dict[str, float | None]:
    """`mean` over clips, `std` of the folds, and `low` and `high`, the corrected 95 % t interval.

    Args:
        values, weights: `[n]`, of each clip; weights add up to 1.
        folds: int `[n]`, the fold that held each clip out, two at least.
    """
    mean, error, num_folds = _error_over_folds(values, weights, folds)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, num_folds - 1)) * _shared(num_folds) * error
    std = error * float(np.sqrt(num_folds))
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half}


def paired_over_folds(values: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> dict[str, Any]:
    """`over_folds` of differences clip by clip, with the p-value of no difference.

    Where all folds have the same difference p is None (and 1 where no clip has one).
    """
    found = over_folds(values, weights, folds)
    mean, error, num_folds = _error_over_folds(values, weights, folds)
    p_value: float | None = None
    if error > 1e-12:
        statistic = abs(mean) / (_shared(num_folds) * error)
        p_value = float(2 * stats.t.sf(statistic, num_folds - 1))
    elif not np.any(values):
        p_value = 1.0
    return {
        "difference": mean,
        "low": found["low"],
        "high": found["high"],
        "p_value": p_value,
        "test": "paired t over folds, corrected for shared clips, mean of the seeds",
        "num_pairs": num_folds,
    }


def over_groups(values: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean of `values` (`[n]`, of each clip) with its interval: whole groups are drawn anew.

    Of few groups percentiles are too narrow (of ten they hold in 90 of 100 cases, not 95), so they
    are taken further out: Hesterberg 2015, What Teachers Should Know About the Bootstrap, 4.2.

    Args:
        groups: int `[n]`.
    """
    place = np.unique(groups, return_inverse=True)[1]
    columns = np.stack([np.bincount(place, values), np.bincount(place)], axis=1)
    sums = bootstrap.draws_of_sums(columns)
    wider = replace(bootstrap, confidence=_expanded(bootstrap.confidence, len(columns)))
    interval = wider.interval_of_draws(float(np.mean(values)), sums[:, 0] / sums[:, 1])
    return {
        "low": interval.low,
        "high": interval.high,
        "test": "bootstrap over whole groups, mean of the seeds",
        "num_groups": len(columns),
    }


def _expanded(confidence: float, num_groups: int) -> float:
    """The confidence at which a normal interval by the biased deviation is as wide as Student's."""
    if num_groups < 2:
        return confidence
    t = float(stats.t.ppf(0.5 + confidence / 2, num_groups - 1))
    return 1.0 - 2.0 * float(stats.norm.sf(t * math.sqrt(num_groups / (num_groups - 1))))


def _shared(num_folds: int) -> float:
    """c: how much larger the error is since folds share training clips."""
    return math.sqrt(1.0 + num_folds / (num_folds - 1))


def _error_over_folds(
    values: np.ndarray, weights: np.ndarray, folds: np.ndarray
) -> tuple[float, float, int]:
    """The figure, its standard error over folds, and how many folds there are."""
    place = np.unique(folds, return_inverse=True)[1]
    mean = float(weights @ values)
    residuals = np.bincount(place, weights * values) - mean * np.bincount(place, weights)
    num_folds = len(residuals)
    error = float(np.sqrt(num_folds / (num_folds - 1) * (residuals**2).sum()))
    return mean, error, num_folds
