"""Routing and confusion figures on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.metrics.accuracy import confusion_matrix, hardest_pairs
from dsts_pipeline.metrics.routing import (
    class_by_neuron,
    dead_neurons,
    neuron_usage,
    normalised_mutual_information,
    usage_entropy,
)

NEURONS = np.array([[0, 2], [0, 2], [1, 2], [1, 2]], np.int16)
LABELS = np.array([0, 0, 1, 1])


def test_usage_entropy_and_dead_neurons():
    usage = neuron_usage(NEURONS, 3)
    assert usage.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(usage_entropy(usage), [np.log(2), 0.0])
    assert dead_neurons(usage).tolist() == [1, 2]
    assert not np.signbit(usage_entropy(usage)).any()


def test_a_choice_beyond_the_neurons_is_an_error():
    with pytest.raises(ValueError, match=r"span 0\.\.2, expected 0\.\.1"):
        neuron_usage(NEURONS, 2)


def test_class_by_neuron_counts_every_clip_once_per_layer():
    counts = class_by_neuron(NEURONS, LABELS, num_classes=3, num_neurons=3)
    assert counts.shape == (2, 3, 3)
    assert counts[0].tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert counts.sum(axis=(1, 2)).tolist() == [4, 4]


def test_mutual_information_is_one_for_a_bijection_and_zero_for_none():
    assert normalised_mutual_information(np.diag([3, 5, 2])) == pytest.approx(1.0)
    assert normalised_mutual_information(np.outer([1, 2], [3, 4, 5])) == pytest.approx(0.0)
    assert normalised_mutual_information(np.array([[4, 0], [6, 0]])) == 0.0


def test_confusion_counts_true_by_predicted():
    confusion = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 4)
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[0, 1] = expected[1, 1] = expected[2, 0] = 1
    np.testing.assert_array_equal(confusion, expected)


def test_hardest_pairs_add_both_directions_and_leave_out_zeros():
    confusion = np.array([[5, 2, 0], [3, 5, 1], [0, 0, 9]])
    pairs = hardest_pairs(confusion, limit=10)
    assert [(pair.first, pair.second, pair.total) for pair in pairs] == [(0, 1, 5), (1, 2, 1)]
    assert pairs[0].share == pytest.approx(5 / 16)
    assert hardest_pairs(confusion, limit=1) == pairs[:1]
    assert hardest_pairs(np.diag([1, 2]), limit=3) == []
