"""Two sets of answers compared, on cases worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import Bootstrap, Predictions, compare_predictions
from tests.metrics.examples import random_answers, sure_answers

LABELS = [0, 0, 0, 1, 1, 3, 3, 3]  # class 2 has no clips
#         both right, first, first, both wrong, second, first, both, both
FIRST = [0, 0, 0, 2, 0, 3, 3, 3]
SECOND = [0, 1, 1, 0, 1, 2, 3, 3]
BOOTSTRAP = Bootstrap(500)


def compare(**changes):
    first, second = (sure_answers(LABELS, each, 4) for each in (FIRST, SECOND))
    return compare_predictions(first, second, BOOTSTRAP, **changes)


def test_by_hand():
    found = compare()
    assert (found["both_right"], found["both_wrong"]) == (3, 1)
    assert (found["only_first_right"], found["only_second_right"]) == (3, 1)
    assert found["mcnemar"]["exact_p"] == pytest.approx(2 * 5 / 16)
    assert found["same_answer"] == 3 / 8  # the two wrong answers to clip 3 differ
    top1 = found["top1"]
    assert (top1["first"], top1["second"]) == (6 / 8, 4 / 8)
    assert top1["difference_low"] < top1["difference"] == 0.25 < top1["difference_high"]
    assert found["class_wise"]["first"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["class_wise"]["second"] == pytest.approx((1 / 3 + 1 / 2 + 2 / 3) / 3)
    gain = found["class_wise"]["first"] - found["class_wise"]["second"]
    assert found["class_wise"]["difference"] == pytest.approx(gain)


def test_classes_by_hand():
    columns = compare()["per_class"]
    assert columns["clips"] == [3, 2, 0, 3]
    assert (columns["first"], columns["second"]) == ([3, 0, 0, 3], [1, 1, 0, 2])
    np.testing.assert_allclose(np.array(columns["difference"], float), [2 / 3, -0.5, np.nan, 1 / 3])
    assert columns["p"] == [0.5, 1.0, 1.0, 1.0]
    assert columns["p_holm"] == [1.0, 1.0, 1.0, 1.0]


def test_attributes_by_hand():
    attributes = [["Back"], ["Back"], ["Forward"], ["Forward"]]
    found = compare(attribute_names=["takeoff"], attributes=attributes)["attributes"]["takeoff"]
    assert (found["first"], found["second"]) == (7 / 8, 8 / 8)
    assert compare()["attributes"] is None


def test_turning_it_round_turns_the_signs():
    answers = [random_answers(seed)[0] for seed in (0, 1)]
    labels = random_answers(0)[1]
    ids = tuple(f"c{i}" for i in range(len(labels)))
    one, two = (Predictions(ids, labels, each) for each in answers)
    there, back = (compare_predictions(a, b, BOOTSTRAP) for a, b in ((one, two), (two, one)))
    for name in ("top1", "top5", "class_wise", "nll"):
        assert there[name]["difference"] == pytest.approx(-back[name]["difference"])
        assert there[name]["difference_low"] == pytest.approx(-back[name]["difference_high"])
    assert there["mcnemar"]["p"] == back["mcnemar"]["p"]
    assert there["per_class"]["p_holm"] == back["per_class"]["p_holm"]
    json.dumps(there, allow_nan=False)


def test_a_run_against_itself_is_no_different():
    one = sure_answers(LABELS, FIRST, 4)
    found = compare_predictions(one, one, BOOTSTRAP)
    assert found["top1"]["difference_low"] == found["top1"]["difference_high"] == 0
    assert found["mcnemar"]["p"] == 1 and found["same_answer"] == 1


def test_rows_are_brought_into_the_same_order():
    first, second = (sure_answers(LABELS, each, 4) for each in (FIRST, SECOND))
    order = np.random.default_rng(0).permutation(8)
    mixed = Predictions(
        tuple(second.clip_ids[row] for row in order),
        second.labels[order],
        second.probabilities[order],
    )
    assert compare_predictions(first, mixed, BOOTSTRAP) == compare()


def test_other_clips_are_refused_or_counted():
    first = sure_answers(LABELS, FIRST, 4)
    second = sure_answers(LABELS[:6], SECOND[:6], 4)
    with pytest.raises(DataError, match="2 are in one only"):
        compare_predictions(first, second, BOOTSTRAP)
    found = compare_predictions(first, second, BOOTSTRAP, different_clips="common")
    assert (found["clips"], found["only_in_first"], found["only_in_second"]) == (6, 2, 0)
    assert found["top1"]["first"] == 4 / 6
    other = sure_answers(LABELS, FIRST, 4, prefix="other")
    with pytest.raises(DataError, match="no clip in common"):
        compare_predictions(first, other, BOOTSTRAP, different_clips="common")
    with pytest.raises(DataError, match="4 and 5 classes"):
        compare_predictions(first, sure_answers(LABELS, FIRST, 5), BOOTSTRAP)
