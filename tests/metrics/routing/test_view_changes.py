"""Changes of the route between views of one clip, by hand and by counting pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsts_pipeline.metrics.routing import describe_view_changes, number_routes


def test_by_hand():
    # Clip 0: 1 1 1, clip 1: 0 1, clip 2: one view, clip 3: 0 0 2.
    clips = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])
    neurons = np.array([1, 1, 1, 0, 1, 2, 0, 0, 2])
    found = describe_view_changes(neurons, clips, 3)
    assert found["clips"] == 3 and found["changed"] == pytest.approx(2 / 3)
    assert found["pairs_apart"] == pytest.approx(3 / 7)
    use = np.array([3, 4, 1]) / 8  # of clips with several views
    assert found["pairs_apart_null"] == pytest.approx(1 - (use**2).sum())


def test_one_view_a_clip_has_nothing_to_change():
    assert describe_view_changes(np.array([0, 1]), np.array([0, 1]), 2) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=30))
def test_pairs_are_counted_right(rows):
    present = sorted({clip for clip, _ in rows})
    clips = np.array([present.index(clip) for clip, _ in rows])
    neurons = np.array([neuron for _, neuron in rows])
    pairs = [
        neurons[a] != neurons[b]
        for a, b in combinations(range(len(rows)), 2)
        if clips[a] == clips[b]
    ]
    found = describe_view_changes(neurons, clips, 4)
    assert (found is None) == (not pairs)
    if found:
        assert found["pairs_apart"] == pytest.approx(np.mean(pairs))
        assert (found["changed"] == 0) == (not any(pairs))


def test_whole_routes_are_numbered():
    routes, number = number_routes(np.array([[1, 0], [0, 0], [1, 0], [1, 2]]))
    assert routes.tolist() == [[0, 0], [1, 0], [1, 2]] and number.tolist() == [1, 0, 1, 2]
