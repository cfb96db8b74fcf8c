"""Mutual information against scikit-learn, chance against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from dsts_pipeline.metrics.accuracy import count_table
from dsts_pipeline.metrics.routing import (
    adjusted_mutual_information,
    describe_information,
    expected_mutual_information,
    mutual_information,
    normalised_mutual_information,
)


def routes(seed, num_clips, num_classes, num_neurons, follow):
    """Classes and neurons; a share `follow` of clips goes where its class says."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(num_classes, size=num_clips)
    neurons = generator.integers(num_neurons, size=num_clips)
    obedient = generator.random(num_clips) < follow
    return classes, np.where(obedient, classes % num_neurons, neurons)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 120),
    st.integers(1, 12),
    st.integers(1, 6),
    st.floats(0, 1),
)
def test_all_three_equal_scikit_learns(seed, num_clips, num_classes, num_neurons, follow):
    classes, neurons = routes(seed, num_clips, num_classes, num_neurons, follow)
    counts = count_table(classes, neurons, (num_classes, num_neurons))
    assert mutual_information(counts) == pytest.approx(
        sk.mutual_info_score(classes, neurons), abs=1e-9
    )
    if min((counts.sum(axis=0) > 0).sum(), (counts.sum(axis=1) > 0).sum()) < 2:
        # All in one group or neuron: nothing can be learnt (scikit-learn says 1 if both are).
        assert normalised_mutual_information(counts) == adjusted_mutual_information(counts) == 0
        return
    arguments = {"average_method": "geometric"}
    normalised = sk.normalized_mutual_info_score(classes, neurons, **arguments)
    assert normalised_mutual_information(counts) == pytest.approx(normalised, abs=1e-7)
    adjusted = sk.adjusted_mutual_info_score(classes, neurons, **arguments)
    if counts.max() > 1:  # with one clip a cell, 0 / 0 up to rounding
        assert adjusted_mutual_information(counts) == pytest.approx(adjusted, abs=1e-6)


def test_expected_information_is_the_mean_over_random_routes():
    classes, neurons = routes(0, 300, 12, 5, 0.3)
    counts = count_table(classes, neurons, (12, 5))
    generator = np.random.default_rng(1)
    draws = [
        mutual_information(count_table(classes, generator.permutation(neurons), (12, 5)))
        for _ in range(2000)
    ]
    expected = expected_mutual_information(counts.sum(axis=1), counts.sum(axis=0))
    assert expected == pytest.approx(np.mean(draws), rel=0.02)


def test_chance_alone_looks_like_a_lot_unless_it_is_taken_away():
    # As in Diving48's test split: 48 classes, 25 clips each, ten neurons.
    classes, neurons = routes(2, 1200, 48, 10, 0.0)
    found = describe_information(classes, neurons, (48, 10), num_permutations=100, seed=0)
    assert found["nmi"] > 0.05, "this is what a reader would take for structure"
    assert abs(found["adjusted"]) < 0.02
    assert found["nmi"] < found["nmi_null_high"] * 1.05 and found["p"] > 0.01
    assert found["nmi_null"] == pytest.approx(found["nmi"], abs=0.01)


def test_routes_that_follow_classes_are_found():
    classes, neurons = routes(3, 400, 8, 4, 0.7)
    found = describe_information(classes, neurons, (8, 4), num_permutations=99, seed=0)
    assert found["p"] == pytest.approx(0.01), "the smallest p that 99 draws can give"
    assert found["adjusted"] > 0.2 and found["nmi"] > 3 * found["nmi_null_high"]
    assert found["group_entropy"] == pytest.approx(np.log(8), abs=0.05)


def test_p_is_uniform_where_routes_are_random():
    p_values = [
        describe_information(*routes(seed, 80, 4, 3, 0.0), (4, 3), num_permutations=49, seed=seed)[
            "p"
        ]
        for seed in range(150)
    ]
    assert np.mean(np.array(p_values) <= 0.1) < 0.17 and np.mean(p_values) > 0.42
