"""Statistics per channel against NumPy over everything at once, and the test for drift."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.feature_store.statistics import (
    MAX_KEPT,
    ChannelStatistics,
    ClipMeans,
    describe_maps,
)

SHARD = 25


def make_maps(num_maps: int, *, seed: int = 0, num_channels: int = 6) -> np.ndarray:
    """Maps like a backbone's: many zeros, heavy tails, channels that depend on each other."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((num_maps, 1, 1, 1, 1))
    own = generator.standard_normal((num_maps, num_channels, 2, 3, 3))
    return np.maximum(0.0, common + own**3).astype(np.float32)


# ---- statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_streamed_figures_are_those_of_all_maps_at_once(dtype):
    maps = make_maps(53).astype(dtype)
    maps[:, 4] = 2.5
    statistics = ChannelStatistics(6)
    for start in range(0, 53, 7):
        statistics.add(describe_maps(maps[start : start + 7]))
    exact = maps.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=(0, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, exact.std(axis=(0, 2, 3, 4)), rtol=1e-12)
    np.testing.assert_array_equal(statistics.zero_share, (exact == 0).mean(axis=(0, 2, 3, 4)))
    assert statistics.dead == [4]
    assert statistics.num_maps == 53


def test_far_from_zero_nothing_cancels():
    maps = (1e8 + np.random.default_rng(0).standard_normal((40, 1, 1, 8, 8))).astype(np.float64)
    statistics = ChannelStatistics(1)
    for start in range(0, 40, 4):
        statistics.add(describe_maps(maps[start : start + 4]))
    assert statistics.std[0] == pytest.approx(maps.std(), rel=1e-6)


def test_maps_that_are_not_finite_are_counted_and_left_out():
    maps = make_maps(8)
    expected = ChannelStatistics(6)
    expected.add(describe_maps(maps[[0, 2, 3, 5, 6, 7]]))
    maps[1, 2, 0, 0, :2] = np.nan
    maps[4, 0] = -np.inf
    figures = describe_maps(maps)
    assert figures.num_nan.tolist() == [0, 2, 0, 0, 0, 0, 0, 0]
    assert figures.num_inf.tolist() == [0, 0, 0, 0, 18, 0, 0, 0]
    assert figures.finite.tolist() == [True, False, True, True, False, True, True, True]
    statistics = ChannelStatistics(6)
    statistics.add(figures)
    np.testing.assert_allclose(statistics.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(statistics.std, expected.std, rtol=1e-12)


def test_maps_of_zeros():
    maps = make_maps(3)
    maps[1] = 0
    maps[2, :, 0] = -0.0
    assert describe_maps(maps).all_zero.tolist() == [False, True, False]
    maps[1, 0, 0, 0, 0] = np.nan
    assert not describe_maps(maps).all_zero.any()


# ---- drift ------------------------------------------------------------------------------------


def find_drift(maps, labels, *, clips=None, views=None, shard_size=SHARD, seed=0):
    """Drift between consecutive shards of `shard_size` maps."""
    clips = [f"clip-{n}" for n in range(len(maps))] if clips is None else clips
    views = [0] * len(maps) if views is None else views
    collected = ClipMeans(len(maps), maps.shape[1])
    for shard, start in enumerate(range(0, len(maps), shard_size)):
        part = slice(start, start + shard_size)
        means = describe_maps(maps[part]).means
        collected.add_shard(shard, clips[part], labels[part], views[part], means)
    return collected.test(seed=seed)


def test_honest_stores_are_not_flagged():
    """At most 2 of 1,000 by the statistic's own limit; of 60 none may be."""
    for seed in range(60):
        labels = np.random.default_rng(seed).integers(0, 4, 150)
        drift = find_drift(make_maps(150, seed=seed), labels, seed=seed)
        assert drift.within_classes and drift.num_shuffles == 999 and drift.num_shards == 6
        assert not drift.flagged, seed


def test_shard_of_another_scale_is_flagged_alone():
    for seed in range(5):
        maps, labels = make_maps(150, seed=seed), np.arange(150) % 4
        maps[50:75] = 1.5 * maps[50:75] + 0.5
        (flagged,) = find_drift(maps, labels).flagged
        assert flagged.shard == 2 and flagged.num_clips == 25
        assert flagged.broad > flagged.broad_limit
        assert "shard 2 differs from the others beyond chance" in str(flagged)


def test_change_of_one_channel_among_many_names_it():
    maps, labels = make_maps(150, num_channels=40), np.arange(150) % 4
    maps[100:125, 17] += 4.0
    (flagged,) = find_drift(maps, labels).flagged
    assert (flagged.shard, flagged.channel) == (4, 17) and flagged.z > flagged.narrow_limit


def test_several_bad_shards_do_not_hide_each_other_nor_blame_their_neighbours():
    maps, labels = make_maps(500), np.arange(500) % 4
    maps[25:50] += 3.0
    maps[200:225] += 1.5
    maps[475:500] -= 30.0
    assert sorted(s.shard for s in find_drift(maps, labels).flagged) == [1, 8, 19]


def test_classes_in_sequence_are_no_drift_but_a_changed_class_mean_is():
    """A store sorted by class: shards differ, and only because their classes do."""
    labels = np.sort(np.arange(300) % 3)
    maps = make_maps(300) + 5.0 * labels[:, None, None, None, None]
    assert not find_drift(maps, labels).flagged
    unlabelled = find_drift(maps, np.zeros(300, dtype=int))
    assert unlabelled.flagged, "without the classes it would be one"
    maps[125:150] += 5.0
    assert [s.shard for s in find_drift(maps, labels).flagged] == [5]


def test_views_of_one_clip_count_once():
    """Ten views of a clip hardly differ: taken as ten clips they would look like drift."""
    generator = np.random.default_rng(1)
    clips = make_maps(60, seed=3)
    maps = np.repeat(clips, 10, axis=0)
    maps = maps + 0.01 * generator.standard_normal(maps.shape).astype(np.float32)
    ids = [f"clip-{n // 10}" for n in range(600)]
    views = [n % 10 for n in range(600)]
    labels = np.zeros(600, dtype=int)
    assert not find_drift(maps, labels, clips=ids, views=views, shard_size=50).flagged
    assert find_drift(maps, labels, shard_size=50).flagged, "as clips of their own"


def test_too_few_shards_are_not_tested():
    drift = find_drift(make_maps(40), np.zeros(40, dtype=int))
    assert not drift.flagged and "2 shards, at least 3" in drift.note


def test_kept_figures_are_bounded():
    many = ClipMeans(200_000, 2048)
    assert len(many.channels) * 200_000 <= MAX_KEPT
    assert many.channels[0] == 0 and many.channels[-1] == 2047
    assert len(ClipMeans(3600, 128).channels) == 128
