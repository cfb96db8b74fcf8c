"""The bootstrap against a literal loop, against theory, and its edges."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.metrics import intervals
from dsts_pipeline.metrics.intervals import Bootstrap, paired_difference


def _literal(values, labels, bootstrap):
    """The same draws, one at a time, with Python lists."""
    generator = np.random.default_rng(bootstrap.seed)
    means, class_means = [], []
    for _ in range(bootstrap.num_resamples):
        rows = generator.integers(len(values), size=len(values))
        means.append(np.mean([values[row] for row in rows]))
        by_class: dict[int, list[float]] = {}
        for row in rows:
            by_class.setdefault(int(labels[row]), []).append(values[row])
        class_means.append(np.mean([np.mean(group) for group in by_class.values()]))
    tail = (1 - bootstrap.confidence) / 2
    return [np.quantile(draws, [tail, 1 - tail]) for draws in (means, class_means)]


@pytest.mark.parametrize("chunk", [10, 4_000_000])
def test_equals_the_literal_loop_in_any_chunking(monkeypatch, chunk):
    monkeypatch.setattr(intervals, "_CHUNK_ELEMENTS", chunk)
    generator = np.random.default_rng(4)
    labels = generator.integers(5, size=30)
    hits = generator.random(30) < 0.7
    bootstrap = Bootstrap(num_resamples=200, confidence=0.9, seed=3)
    mean_bounds, class_bounds = _literal(hits.astype(float), labels, bootstrap)
    mean = bootstrap.interval_of_mean(hits)
    by_class = bootstrap.interval_of_class_mean(hits, labels, 6)
    np.testing.assert_allclose([mean.low, mean.high], mean_bounds)
    np.testing.assert_allclose([by_class.low, by_class.high], class_bounds)
    assert mean.value == pytest.approx(hits.mean())


def test_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        interval = Bootstrap(400, seed=seed).interval_of_mean(generator.random(300) < 0.7)
        inside += interval.low <= 0.7 <= interval.high
    assert 180 <= inside <= 199


def test_same_seed_same_interval_and_no_width_when_all_are_right():
    hits = np.arange(50) % 3 > 0
    assert Bootstrap(seed=5).interval_of_mean(hits) == Bootstrap(seed=5).interval_of_mean(hits)
    sure = Bootstrap().interval_of_mean(np.ones(8))
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)


def test_paired_difference_is_narrower_than_two_separate_intervals():
    generator = np.random.default_rng(2)
    base = generator.random(1000) < 0.7
    head = base.copy()
    head[np.flatnonzero(~base)[:30]] = True
    bootstrap = Bootstrap(1000)
    difference = paired_difference(head, base, bootstrap)
    alone = bootstrap.interval_of_mean(base)
    assert difference.value == pytest.approx(0.03)
    assert 0 < difference.low < 0.03 < difference.high
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_heads_on_different_clips_cannot_be_paired():
    with pytest.raises(ValueError, match="same clips"):
        paired_difference(np.ones(3, bool), np.ones(4, bool), Bootstrap())
    with pytest.raises(ValueError, match="num_resamples"):
        Bootstrap(num_resamples=0)
