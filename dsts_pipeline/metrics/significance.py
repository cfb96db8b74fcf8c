"""Tests on the same clips answered twice, and what many tests at once do to their p-values.

Enters: counts of discordant clips, or p-values. Leaves: p-values.
Sources: McNemar 1947; Edwards 1948 (continuity correction); Holm 1979.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

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
