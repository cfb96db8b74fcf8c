"""Intervals and tests over seeds, against scipy's own and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dsts_pipeline.metrics.intervals import (
    Bootstrap,
    over_seeds,
    paired_over_clips,
    paired_over_seeds,
)

VALUES, OTHERS = [0.41, 0.44, 0.38, 0.43], [0.40, 0.41, 0.39, 0.39]


def test_three_seeds_by_hand():
    found = over_seeds([0.1, 0.2, 0.3])
    assert found["mean"] == pytest.approx(0.2) and found["std"] == pytest.approx(0.1)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom, from a table
    assert found["low"] == pytest.approx(0.2 - half) and found["high"] == pytest.approx(0.2 + half)


def test_interval_is_scipys():
    found = over_seeds(VALUES)
    low, high = stats.t.interval(0.95, 3, np.mean(VALUES), stats.sem(VALUES))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_spread():
    assert over_seeds([0.5]) == {"mean": 0.5, "std": None, "low": None, "high": None}
    versus = paired_over_seeds([0.5], [0.4])
    assert versus["difference"] == pytest.approx(0.1)
    assert versus["low"] is versus["p_value"] is None and versus["num_pairs"] == 1


def test_paired_test_is_scipys():
    versus = paired_over_seeds(VALUES, OTHERS)
    expected = stats.ttest_rel(VALUES, OTHERS)
    low, high = expected.confidence_interval(0.95)
    assert versus["p_value"] == pytest.approx(expected.pvalue)
    assert (versus["low"], versus["high"]) == (pytest.approx(low), pytest.approx(high))
    assert versus["test"] == "paired t over seeds" and versus["num_pairs"] == 4
    back = paired_over_seeds(OTHERS, VALUES)
    assert back["difference"] == pytest.approx(-versus["difference"])


def test_no_spread_of_differences_gives_no_t():
    assert paired_over_seeds(VALUES, VALUES)["p_value"] == 1.0
    versus = paired_over_seeds([0.5, 0.75], [0.25, 0.5])
    assert versus["p_value"] is None and versus["difference"] == 0.25


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="2 and 1 values; expected pairs by seed"):
        paired_over_seeds([0.1, 0.2], [0.1])


def test_clips_are_resampled_together():
    generator = np.random.default_rng(0)
    hits = generator.random((3, 400)) < 0.6
    others = hits & (generator.random((3, 400)) < 0.9)
    versus = paired_over_clips(hits, others, Bootstrap(2000, 0.95, 0))
    by_clip = (hits.astype(float) - others).mean(axis=0)
    assert versus["difference"] == pytest.approx(hits.mean() - others.mean())
    half = 1.96 * by_clip.std() / math.sqrt(400)
    assert versus["high"] - versus["low"] == pytest.approx(2 * half, rel=0.1)
    assert versus["num_pairs"] == 400 and "bootstrap over clips" in versus["test"]
