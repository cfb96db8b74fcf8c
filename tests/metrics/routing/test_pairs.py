"""Hard pairs of classes, by hand, and how often chance alone names one."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.metrics import Bootstrap
from dsts_pipeline.metrics.routing import describe_pairs

NAMES = ["a", "b", "c", "d"]


def pairs(labels, head, base, names=NAMES, limit=10):
    arrays = (np.asarray(values) for values in (labels, head, base))
    return describe_pairs(*arrays, names, Bootstrap(300), limit)


def test_by_hand():
    labels = [0] * 6 + [1] * 6 + [2] * 4
    base = (
        [1] * 4 + [0] * 2 + [0] * 3 + [1] * 3 + [2] * 4
    )  # takes a for b four times, b for a three
    head = [1] + [0] * 5 + [1] * 5 + [2] + [1, 1, 2, 2]  # a for b once, b for c once, c for b twice
    found = pairs(labels, head, base)
    assert (found["num_pairs"], found["num_tested"]) == (3, 2)  # class d has no clips
    (best,), (worst,) = found["separated"], found["merged"]
    assert (best["first"], best["second"], best["names"]) == (0, 1, ["a", "b"])
    assert (best["clips"], best["baseline_confused"], best["head_confused"]) == (12, 7, 1)
    assert (best["only_baseline"], best["only_head"]) == (6, 0)
    assert best["difference"] == pytest.approx(6 / 12)
    assert 0 < best["difference_low"] < 0.5 < best["difference_high"]
    assert best["p"] == pytest.approx(2 / 64) and best["p_holm"] == pytest.approx(4 / 64)
    assert worst["names"] == ["b", "c"] and worst["only_head"] == 3
    assert worst["difference"] == pytest.approx(-3 / 10) and worst["p"] == 0.25


def test_the_same_answers_separate_nothing():
    found = pairs([0, 1, 2], [1, 1, 0], [1, 1, 0])
    assert found["num_tested"] == 0 and found["separated"] == found["merged"] == []


def test_two_wrong_answers_count_for_two_pairs():
    found = pairs([0, 3], [1, 3], [2, 3])
    assert [row["names"] for row in found["separated"]] == [["a", "c"]]
    assert [row["names"] for row in found["merged"]] == [["a", "b"]]


def test_chance_rarely_names_a_pair():
    # Two heads that err alike at random, 12 classes: the best of 66 pairs always looks good.
    found_any, looked_good = 0, 0
    names = [str(number) for number in range(12)]
    for seed in range(60):
        generator = np.random.default_rng(seed)
        labels = np.repeat(np.arange(12), 60)
        near = labels ^ 1  # confusions go to one neighbour: many discordant clips a pair

        def answers(labels=labels, near=near, generator=generator):
            return np.where(generator.random(720) < 0.4, near, labels)

        rows = pairs(labels, answers(), answers(), names, limit=100)
        listed = rows["separated"] + rows["merged"]
        found_any += any(row["p_holm"] < 0.05 for row in listed)
        looked_good += any(row["p"] < 0.2 for row in listed)
    assert found_any <= 6 and looked_good > 30
