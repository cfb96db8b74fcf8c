"""Tests of significance on cases worked out by hand, and against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dsts_pipeline.metrics.intervals import holm, mcnemar, mcnemar_exact


def test_exact_test_by_hand():
    # 1 of 6: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    found = mcnemar(5, 1)
    assert found["exact_p"] == pytest.approx(14 / 64) and found["discordant"] == 6
    assert (found["p"], found["method"]) == (found["exact_p"], "exact")
    assert mcnemar(3, 3)["p"] == 1.0 and mcnemar(0, 1)["p"] == 1.0
    assert mcnemar(0, 6)["p"] == pytest.approx(2 / 64)


def test_corrected_test_by_hand():
    # (|30 - 12| - 1)^2 / 42 = 289 / 42 = 6.881, the 0.9913 point of chi-squared with 1 degree.
    found = mcnemar(30, 12)
    assert found["chi2"] == pytest.approx(289 / 42)
    assert found["chi2_p"] == pytest.approx(0.00871, abs=1e-5)
    assert (found["p"], found["method"]) == (found["chi2_p"], "chi2")
    assert mcnemar(13, 13)["chi2"] == 0 and mcnemar(13, 13)["chi2_p"] == 1


def test_no_discordant_clips_say_nothing():
    assert mcnemar(0, 0) == {
        "discordant": 0,
        "exact_p": 1.0,
        "chi2": 0.0,
        "chi2_p": 1.0,
        "p": 1.0,
        "method": "exact",
    }
    with pytest.raises(ValueError, match="none below zero"):
        mcnemar(-1, 2)


@given(st.integers(0, 300), st.integers(0, 300))
def test_exact_p_is_that_of_scipys_binomial_test(first, second):
    if first + second:
        expected = stats.binomtest(first, first + second, 0.5).pvalue
        assert mcnemar(first, second)["exact_p"] == pytest.approx(expected)
        assert mcnemar(second, first)["exact_p"] == mcnemar(first, second)["exact_p"]


def test_the_level_is_kept_where_heads_are_equally_good():
    gained = np.random.default_rng(0).binomial(20, 0.5, size=20_000)
    assert np.mean(mcnemar_exact(gained, 20 - gained) < 0.05) < 0.055


def test_holm_by_hand():
    # Sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1; never below one that comes before.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all() and (adjusted <= 1).all()
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
