"""Need of time by class and neuron, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.metrics.routing import class_need, clip_need, describe_gates

LABELS = np.array([0, 0, 1, 1])
ORDERED = np.array([[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])
SHUFFLED = np.array([[0.4, 0.6, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])


def test_classes_by_hand():
    np.testing.assert_allclose(clip_need(ORDERED, SHUFFLED, LABELS), [0.5, 0.1, 0.0, -0.1])
    columns = class_need(ORDERED, SHUFFLED, LABELS)
    assert columns["clips"] == [2, 2, 0]
    assert columns["accuracy"] == [1.0, 0.5, None]
    assert columns["accuracy_without_time"] == [0.5, 0.5, None]
    assert columns["accuracy_drop"] == [0.5, 0.0, None]
    assert columns["need"][:2] == pytest.approx([0.3, -0.05]) and columns["need"][2] is None


def gates(shares, neurons, need, **changes):
    options = {"num_permutations": 199, "seed": 0} | changes
    return describe_gates(shares, np.asarray(neurons), LABELS, need, **options)


def test_neurons_by_hand():
    found = gates([0.2, 0.5, 0.9], [0, 2, 0, 2], clip_need(ORDERED, SHUFFLED, LABELS))
    assert found["clip_need"][0] == pytest.approx(0.25) and found["clip_need"][1] is None
    # Each neuron serves one clip of either class, so their classes need the same.
    assert found["class_need"][0] == found["class_need"][2] == pytest.approx(0.125)
    assert found["rank_correlation"] is None, "two live neurons rank nothing"
    assert gates([0.2, 0.5], [0, 1, 0, 1], None) == {"temporal_share": [0.2, 0.5]}


def test_correlation_is_spearmans_and_its_p_two_sided():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 10)
    need = labels / 10 + 0.01 * generator.standard_normal(80)
    options = {"num_permutations": 999, "seed": 0}
    shares = np.exp(np.arange(8) / 3)  # monotone, not linear
    up = describe_gates(shares / 20, labels, labels, need, **options)
    down = describe_gates(shares[::-1] / 20, labels, labels, need, **options)
    assert up["rank_correlation"] == pytest.approx(1) == -down["rank_correlation"]
    assert up["p"] < 0.01 and down["p"] < 0.01
    flat = describe_gates(np.full(8, 0.5), labels, labels, need, **options)
    assert flat["rank_correlation"] is None and flat["p"] is None
