"""Late fusion of two streams' scores."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import HeadResult, Predictions
from dsts_pipeline.metrics.fusion import fuse, fuse_heads
from tests.metrics.examples import random_answers


def answers(seed: int) -> Predictions:
    probabilities, _ = random_answers(seed, 30, 5)
    _, labels = random_answers(0, 30, 5)
    return Predictions(tuple(f"c{n}" for n in range(30)), labels, probabilities)


def shuffled(found: Predictions) -> Predictions:
    order = np.random.default_rng(1).permutation(len(found))
    ids = tuple(found.clip_ids[row] for row in order)
    return Predictions(ids, found.labels[order], found.probabilities[order])


def test_scores_are_averaged_clip_by_clip_whatever_their_order():
    first, second = answers(0), answers(1)
    both = fuse([first, shuffled(second)])
    for row, name in enumerate(first.clip_ids):
        expected = (first.probabilities[row] + second.probabilities[row]) / 2
        np.testing.assert_allclose(both.probabilities[row], expected, rtol=1e-6)
        assert both.clip_ids[row] == name
    weighted = fuse([first, second], [1, 3])
    expected = 0.25 * first.probabilities + 0.75 * second.probabilities
    np.testing.assert_allclose(weighted.probabilities, expected, rtol=1e-6)


def test_a_head_of_both_has_the_parameters_of_both_and_no_routes():
    routed = Predictions(
        answers(0).clip_ids, answers(0).labels, answers(0).probabilities, np.zeros((30, 1))
    )
    both = fuse_heads([HeadResult("a", routed, 3, 2), HeadResult("b", answers(1), 4)])
    assert (both.num_parameters, both.title) == (7, "2 streams, fused late")
    assert both.predictions.neurons is None and both.num_neurons is None


def test_other_clips_or_weights_are_refused():
    first = answers(0)
    fewer = first.of_clips(first.clip_ids[1:])
    with pytest.raises(DataError, match="cover different clips"):
        fuse([first, fewer])
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="a positive each"):
            fuse([first, first], weights)
