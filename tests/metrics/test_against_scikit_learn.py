"""Figures against scikit-learn's, classes without clips included; where it differs, it is said."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from dsts_pipeline.metrics import average_views
from dsts_pipeline.metrics.accuracy import (
    class_columns,
    class_wise_accuracy,
    confusion_matrix,
    top_k_hits,
)
from dsts_pipeline.metrics.calibration import (
    brier_score,
    equal_count_edges,
    equal_width_edges,
    negative_log_likelihood,
    reliability,
)
from tests.metrics.examples import random_answers

CLASSES = np.arange(7)
PRESENT = [0, 1, 3, 4, 6]  # 2 and 5 have no clips but are predicted
SEEDS = st.integers(0, 10_000)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 5]), st.booleans())
def test_top_k(seed, k, absent):
    probabilities, labels = random_answers(seed, present=PRESENT if absent else None)
    expected = sk.top_k_accuracy_score(labels, probabilities, k=k, labels=CLASSES)
    assert top_k_hits(probabilities, labels, k).mean() == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_class_wise_is_balanced_accuracy_where_predicted_classes_have_no_clips(seed):
    probabilities, labels = random_answers(seed, present=PRESENT)
    predicted = probabilities.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn tells that predictions name such classes
        expected = sk.balanced_accuracy_score(labels, predicted)
    assert class_wise_accuracy(predicted == labels, labels, 7) == pytest.approx(expected)


def test_confusion_has_a_row_for_classes_without_clips():
    probabilities, labels = random_answers(3, present=PRESENT)
    predicted = probabilities.argmax(axis=1)
    found = confusion_matrix(labels, predicted, 7)
    np.testing.assert_array_equal(found, sk.confusion_matrix(labels, predicted, labels=CLASSES))
    assert found[2].sum() == 0 and found[:, 2].sum() > 0


def test_recall_and_precision_by_class():
    probabilities, labels = random_answers(4, present=PRESENT)
    predicted = probabilities.argmax(axis=1)
    columns = class_columns(predicted == labels, labels, predicted, 7, 0.95)
    precision, recall, _, clips = sk.precision_recall_fscore_support(
        labels, predicted, labels=CLASSES, zero_division=np.nan
    )
    as_floats = {name: np.array(columns[name], float) for name in ("accuracy", "precision")}
    np.testing.assert_allclose(as_floats["accuracy"], recall)  # None becomes NaN, as there
    np.testing.assert_allclose(as_floats["precision"], precision)
    assert columns["clips"] == clips.tolist()
    assert columns["accuracy"][2] is None


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_brier_and_likelihood(seed):
    probabilities, labels = random_answers(seed, present=PRESENT)
    brier = sk.brier_score_loss(labels, probabilities, labels=CLASSES, scale_by_half=False)
    assert brier_score(probabilities, labels).mean() == pytest.approx(brier)
    loss = sk.log_loss(labels, probabilities, labels=CLASSES)
    assert negative_log_likelihood(probabilities, labels).mean() == pytest.approx(loss)


@pytest.mark.parametrize(("strategy", "num_bins"), [("uniform", 10), ("quantile", 8)])
def test_reliability_bins(strategy, num_bins):
    probabilities, labels = random_answers(5)
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = (
        equal_width_edges(num_bins)
        if strategy == "uniform"
        else equal_count_edges(confidence, num_bins)
    )
    bins = reliability(confidence, hits, edges)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=num_bins, strategy=strategy)
    full = bins.counts > 0
    np.testing.assert_allclose((bins.right / np.maximum(bins.counts, 1))[full], accuracy)
    np.testing.assert_allclose(bins.confidence[full], mean)


def test_views_averaged_first():
    probabilities, labels = random_answers(6, num_clips=60)
    clips = np.arange(60) // 3
    labels = labels[clips * 3]
    found = average_views([f"c{clip}" for clip in clips], labels, probabilities)
    by_hand = probabilities.reshape(20, 3, 7).mean(axis=1)
    expected = sk.top_k_accuracy_score(labels[::3], by_hand, k=2, labels=CLASSES)
    assert top_k_hits(found.probabilities, found.labels, 2).mean() == pytest.approx(expected)
    one_view = sk.top_k_accuracy_score(labels, probabilities, k=2, labels=CLASSES)
    assert one_view != pytest.approx(expected), "the views differ, so this test could fail"


def test_ties_are_where_scikit_learn_differs():
    # Of equal classes it puts the last first, we the first, as argmax does.
    even, labels = np.full((4, 4), 0.25), np.array([3, 3, 3, 0])
    assert sk.top_k_accuracy_score(labels, even, k=1, labels=np.arange(4)) == 0.75
    assert top_k_hits(even, labels, 1).tolist() == [False, False, False, True]
    assert (even.argmax(axis=1) == labels).tolist() == [False, False, False, True]
