"""Calibration against torchmetrics and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from dsts_pipeline.metrics.calibration import (
    bin_numbers,
    brier_score,
    describe_calibration,
    equal_count_edges,
    equal_width_edges,
    expected_error_if_calibrated,
    negative_log_likelihood,
    reliability,
)
from tests.metrics.examples import random_answers


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([5, 15]))
def test_expected_and_largest_error_equal_torchmetrics(seed, num_bins):
    probabilities, labels = random_answers(seed)
    edges = equal_width_edges(num_bins)
    bins = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, edges)
    arguments = torch.from_numpy(probabilities), torch.from_numpy(labels), 7, num_bins
    ece, largest = (float(multiclass_calibration_error(*arguments, norm=n)) for n in ("l1", "max"))
    assert bins.expected_error == pytest.approx(ece, abs=1e-6)
    assert bins.max_error == pytest.approx(largest, abs=1e-6)


def test_error_worked_out_by_hand():
    # Two bins: (0, 0.5] holds 0.4 right and 0.5 wrong; (0.5, 1] holds 0.8, 0.9, 1.0: two right.
    confidence, hits = np.array([0.4, 0.5, 0.8, 0.9, 1.0]), np.array([1, 0, 1, 1, 0])
    bins = reliability(confidence, hits, equal_width_edges(2))
    assert bins.counts.tolist() == [2, 3] and bins.right.tolist() == [1, 2]
    np.testing.assert_allclose(bins.confidence, [0.45, 0.9])
    np.testing.assert_allclose(bins.gaps, [0.05, 0.9 - 2 / 3])
    assert bins.expected_error == pytest.approx((2 * 0.05 + 3 * (0.9 - 2 / 3)) / 5)


def test_an_edge_belongs_to_the_bin_below_and_empty_bins_count_nothing():
    edges = equal_width_edges(4)
    assert bin_numbers(np.array([0.0, 0.25, 0.2501, 1.0]), edges).tolist() == [0, 0, 1, 3]
    bins = reliability(np.array([0.1, 0.9]), np.array([0, 1]), edges)
    assert bins.counts.tolist() == [1, 0, 0, 1]
    assert np.isnan(bins.confidence[1]) and bins.gaps[1] == 0
    assert bins.expected_error == pytest.approx(0.1)


def test_bins_of_equal_counts():
    confidence = np.random.default_rng(0).random(90)
    counts = reliability(confidence, confidence > 2, equal_count_edges(confidence, 9)).counts
    assert counts.sum() == 90 and counts.min() >= 9 and counts.max() <= 11
    # Equal confidences cannot be told apart: fewer bins, no clip lost.
    same = np.full(30, 0.7)
    assert reliability(same, same > 2, equal_count_edges(same, 9)).counts.sum() == 30


def test_brier_and_likelihood_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    labels = np.array([0, 1])
    np.testing.assert_allclose(brier_score(probabilities, labels), [0.09 + 0.04 + 0.01, 2.0])
    loss = negative_log_likelihood(probabilities, labels)
    assert loss[0] == pytest.approx(-np.log(0.7)) and 80 < loss[1] < 90  # finite, not infinite


def test_chance_error_of_a_calibrated_head():
    generator = np.random.default_rng(1)
    confidence, edges = generator.uniform(0.3, 1.0, 300), equal_width_edges(15)
    mean, high = expected_error_if_calibrated(confidence, edges, seed=0)
    errors = [
        reliability(confidence, generator.random(300) < confidence, edges).expected_error
        for _ in range(300)
    ]
    assert mean == pytest.approx(np.mean(errors), rel=0.1)
    assert 0 < mean < high and np.mean(np.array(errors) > high) < 0.07


def test_description_tells_a_calibrated_head_from_an_overconfident_one():
    generator = np.random.default_rng(2)
    logits = 2 * generator.standard_normal((2000, 5))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(5, p=row) for row in honest])
    sharper = honest**3 / (honest**3).sum(axis=1, keepdims=True)
    how = {"num_bins": 15, "confidence": 0.95, "seed": 0}
    good, bad = (describe_calibration(p, labels, **how) for p in (honest, sharper))
    for kind in ("equal_width", "equal_count"):
        assert good[kind]["ece"] < good[kind]["ece_if_calibrated_high"]
        assert bad[kind]["ece"] > 2 * bad[kind]["ece_if_calibrated_high"]
        assert sum(row["clips"] for row in good[kind]["bins"]) == 2000
        for row in good[kind]["bins"]:
            assert row["accuracy_low"] <= row["right"] / row["clips"] <= row["accuracy_high"]
