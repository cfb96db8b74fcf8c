"""Accuracy by class and by an attribute's value, with counts, and Wilson's bounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dsts_pipeline.metrics.accuracy import class_columns, value_columns
from dsts_pipeline.metrics.intervals import Bootstrap, wilson_bounds

LABELS = np.array([0, 0, 1, 3, 3, 3])
PREDICTED = np.array([0, 2, 1, 3, 3, 1])
HITS = LABELS == PREDICTED


def test_classes_by_hand():
    columns = class_columns(HITS, LABELS, PREDICTED, 4, 0.95)
    assert columns["clips"] == [2, 1, 0, 3] and columns["right"] == [1, 1, 0, 2]
    assert columns["accuracy"] == [0.5, 1.0, None, pytest.approx(2 / 3)]
    assert columns["predicted"] == [1, 2, 1, 2]
    assert columns["precision"] == [1.0, 0.5, 0.0, 1.0]
    assert columns["low"][2] is None and columns["low"][1] > 0.2


def test_values_by_hand():
    columns = value_columns(HITS, LABELS, ["FREE", "PIKE", "TUCK", "FREE"], 0.95)
    assert columns["values"] == ["FREE", "PIKE", "TUCK"]
    assert columns["clips"] == [5, 1, 0] and columns["right"] == [3, 1, 0]
    assert columns["accuracy"] == [0.6, 1.0, None]


@pytest.mark.parametrize(("right", "clips"), [(0, 5), (3, 5), (5, 5), (170, 400)])
def test_wilson_bounds_are_scipys(right, clips):
    expected = stats.binomtest(right, clips).proportion_ci(0.95, method="wilson")
    low, high = wilson_bounds(np.array([right]), np.array([clips]), 0.95)
    assert (low[0], high[0]) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_many_means_at_once_are_the_same_as_one_by_one():
    columns = np.random.default_rng(0).random((50, 3))
    bootstrap = Bootstrap(200, seed=4)
    together = bootstrap.intervals_of_means(columns)
    for one, column in zip(together, columns.T, strict=True):
        alone = bootstrap.interval_of_mean(column)
        np.testing.assert_allclose(
            (one.value, one.low, one.high), (alone.value, alone.low, alone.high)
        )
