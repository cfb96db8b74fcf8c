"""Accuracies against torchmetrics and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.accuracy import (
    attribute_hits,
    check_attributes,
    class_wise_accuracy,
    label_ranks,
    per_class_accuracy,
    top_k_hits,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(5, 12), st.sampled_from([1, 3, 5]))
def test_top_k_equals_torchmetrics_where_nothing_ties(seed, num_clips, num_classes, k):
    generator = np.random.default_rng(seed)
    probabilities = generator.permuted(
        np.tile(np.arange(1.0, num_classes + 1), (num_clips, 1)), axis=1
    )
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = generator.integers(num_classes, size=num_clips)
    expected = multiclass_accuracy(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels),
        num_classes=num_classes,
        average="micro",
        top_k=k,
    )
    assert top_k_hits(probabilities, labels, k).mean() == pytest.approx(float(expected))


def test_class_wise_equals_torchmetrics_where_every_class_has_clips():
    generator = np.random.default_rng(1)
    labels = np.concatenate([np.arange(7), generator.integers(7, size=80)])
    predicted = generator.integers(7, size=87)
    expected = multiclass_accuracy(
        torch.from_numpy(predicted), torch.from_numpy(labels), num_classes=7, average="macro"
    )
    assert class_wise_accuracy(predicted == labels, labels, 7) == pytest.approx(float(expected))


def test_a_class_without_clips_does_not_count_even_if_it_was_predicted():
    labels, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    hits = predicted == labels
    np.testing.assert_allclose(per_class_accuracy(hits, labels, 4), [0.5, 1.0, np.nan, np.nan])
    assert class_wise_accuracy(hits, labels, 4) == pytest.approx(0.75)


def test_equal_probabilities_score_chance_and_agree_with_argmax():
    labels = np.arange(10)
    flat = np.full((10, 10), 0.1, np.float32)
    assert label_ranks(flat, labels).tolist() == list(range(10))
    assert top_k_hits(flat, labels, 1).mean() == pytest.approx(0.1)
    assert top_k_hits(flat, labels, 5).mean() == pytest.approx(0.5)
    coarse = np.random.default_rng(0).integers(3, size=(50, 10)).astype(np.float32)
    labels = np.random.default_rng(1).integers(10, size=50)
    np.testing.assert_array_equal(top_k_hits(coarse, labels, 1), coarse.argmax(axis=1) == labels)


def test_k_beyond_the_number_of_classes_counts_every_clip():
    assert top_k_hits(np.eye(3), np.array([2, 0, 1]), 5).all()
    with pytest.raises(ValueError, match="k = 0"):
        top_k_hits(np.eye(3), np.arange(3), 0)


def test_attribute_hits_compare_the_values_of_true_and_predicted_class():
    attributes = [["Back", "TUCK"], ["Back", "PIKE"], ["Forward", "PIKE"]]
    hits = attribute_hits(np.array([1, 2, 0]), np.array([0, 1, 0]), attributes)
    assert hits.tolist() == [[True, False], [False, True], [True, True]]


def test_attributes_that_do_not_fit_the_classes_are_refused():
    check_attributes(["a"], [], 9)
    with pytest.raises(DataError, match="for 1 classes, expected 2"):
        check_attributes(["a"], [["x"]], 2)
    with pytest.raises(DataError, match=r"class 1 has attributes \['y', 'z'\]"):
        check_attributes(["a"], [["x"], ["y", "z"]], 2)
