"""Likeness of a neuron's clips against all pairs formed one by one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from dsts_pipeline.metrics.routing import (
    central_clips,
    describe_similarity,
    pair_cosines,
    unit_directions,
)


def features_of(neurons, channels=6, pull=2.0, seed=0):
    """Features with a large common part, as pooled maps have, and a pull to their neuron's own."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((neurons.max() + 1, channels))
    noise = generator.standard_normal((len(neurons), channels))
    return 50 + pull * centres[neurons] + noise


def test_means_are_those_of_all_pairs():
    neurons = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3])  # neuron 2 is dead
    features = features_of(neurons)
    cosines = cosine_similarity(features - features.mean(axis=0))
    first, second = np.triu_indices(len(neurons), k=1)
    same, values = neurons[first] == neurons[second], cosines[first, second]
    found = pair_cosines(unit_directions(features), neurons, 4)
    assert found["within"] == pytest.approx(values[same].mean())
    assert found["across"] == pytest.approx(values[~same].mean())
    for neuron in (0, 1, 3):
        own = values[same & (neurons[first] == neuron)].mean()
        assert found["per_neuron"][neuron] == pytest.approx(own)
    assert np.isnan(found["per_neuron"][2])


def test_centring_is_what_makes_them_tell_anything():
    neurons = np.arange(90) % 3
    features = features_of(neurons)
    assert cosine_similarity(features).min() > 0.98
    found = describe_similarity(features, neurons, 3, num_permutations=99, seed=0)
    assert found["within"] > 0.3 > found["within_null_high"] and found["p"] == pytest.approx(0.01)
    assert found["across"] < found["within_null"]


def test_random_routes_are_like_their_null():
    neurons = np.random.default_rng(1).integers(4, size=200)
    features = features_of(np.arange(200) % 7, seed=2)
    found = describe_similarity(features, neurons, 4, num_permutations=99, seed=0)
    assert found["p"] > 0.02 and found["within"] == pytest.approx(found["within_null"], abs=0.02)


def test_neurons_with_one_clip_each_have_no_pairs():
    found = describe_similarity(np.eye(3), np.arange(3), 3, num_permutations=20, seed=0)
    assert found["within"] is None and found["p"] is None and found["per_neuron"] == [None] * 3
    assert found["across"] == pytest.approx(-0.5)
    same = describe_similarity(np.ones((4, 3)), np.zeros(4, int), 2, num_permutations=20, seed=0)
    assert same["across"] is None and same["within"] == 0.0, "clips that do not differ"


def test_central_clips_are_those_nearest_to_their_neurons_mean():
    features = np.array([[1.0, 0.0], [0.9, 0.45], [0.8, -0.6], [-1.0, 0.1], [-1.0, 0.05]])
    rows = central_clips(features, np.array([0, 0, 0, 1, 1]), 3, limit=2)
    assert rows[0][0] == 0 and len(rows[0]) == 2
    assert sorted(rows[1]) == [3, 4] and rows[2] == []
