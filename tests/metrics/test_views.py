"""Views are averaged per clip, by hand and by the code; with one view nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    Predictions,
    align,
    assemble_metrics,
    average_views,
    count_views,
    softmax,
)
from dsts_pipeline.metrics.summary import denominator_sentence

# Clip "b" comes first and has three views, "a" two, apart from one another.
IDS = ["b", "a", "b", "b", "a"]
LABELS = np.array([1, 0, 1, 1, 0])
LOGITS = np.array([[9.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 3, 0]])
NEURONS = np.array([[0, 2], [1, 1], [0, 0], [0, 1], [2, 2]])


def test_mean_of_probabilities_by_hand():
    found = average_views(IDS, LABELS, softmax(LOGITS), NEURONS)
    assert found.clip_ids == ("b", "a")
    assert found.labels.tolist() == [1, 0]
    e = np.exp(1.0)
    sure = np.array([np.exp(9.0), 1, 1]) / (np.exp(9.0) + 2)
    unsure = np.array([1, e, 1]) / (e + 2)
    first = (sure + 2 * unsure) / 3
    second = (np.array([e, 1, 1]) / (e + 2) + np.array([1, e**3, 1]) / (e**3 + 2)) / 2
    np.testing.assert_allclose(found.probabilities, [first, second], rtol=1e-6)
    # The mean of logits would say the same of "b" ([3, 2/3, 0]) but with another sureness.
    assert abs(found.probabilities[0, 0] - softmax([[3, 2 / 3, 0]])[0, 0]) > 0.2


def test_routes_count_every_view():
    found = average_views(IDS, LABELS, softmax(LOGITS), NEURONS)
    assert found.neurons.tolist() == [[0, 2], [1, 1]]  # of each clip's first view
    neurons, labels = found.routes()
    np.testing.assert_array_equal(neurons, NEURONS)
    np.testing.assert_array_equal(labels, LABELS)


def test_one_view_is_bit_identical(tmp_path):
    ids = ["c", "a", "b"]
    plain = Predictions(tuple(ids), LABELS[:3], softmax(LOGITS[:3]), NEURONS[:3])
    found = average_views(ids, LABELS[:3], softmax(LOGITS[:3]), NEURONS[:3])
    plain.save(tmp_path / "plain.npz")
    found.save(tmp_path / "found.npz")
    assert (tmp_path / "plain.npz").read_bytes() == (tmp_path / "found.npz").read_bytes()
    assert count_views(ids, []).describe() is None


def test_saved_and_aligned_with_the_routes_of_views(tmp_path):
    found = average_views(IDS, LABELS, softmax(LOGITS), NEURONS)
    found.save(tmp_path / "dsts.npz")
    loaded = Predictions.load(tmp_path / "dsts.npz")
    for got, expected in zip(loaded.routes(), found.routes(), strict=True):
        np.testing.assert_array_equal(got, expected)
    base = average_views(IDS[::-1], LABELS[::-1], softmax(LOGITS[::-1]))
    turned = align(base, loaded)
    assert turned.clip_ids == ("a", "b")
    np.testing.assert_array_equal(turned.routes()[1], LABELS)
    np.testing.assert_array_equal(turned.probabilities, found.probabilities[::-1])


def test_labels_of_views_must_agree():
    with pytest.raises(DataError, match="'a': its views have different labels"):
        average_views(IDS, np.array([1, 0, 1, 1, 2]), softmax(LOGITS))


@pytest.mark.parametrize(
    "views",
    [
        {"view_clips": np.array([0, 1])},
        {"view_clips": np.array([0, 0]), "view_neurons": np.zeros((2, 2), int)},
        {"view_clips": np.array([0, 1]), "view_neurons": np.zeros((3, 2), int)},
    ],
)
def test_routes_that_fit_no_clips_are_refused(views):
    with pytest.raises(DataError, match="views"):
        Predictions(("a", "b"), LABELS[:2], softmax(LOGITS[:2]), NEURONS[:2], **views)


def test_joined_views_are_told_even_where_each_clip_has_one():
    told = count_views(["a", "b"], [], num_joined=4).describe()
    assert told == {"per_clip": 1, "averaged": "probabilities", "incomplete": [], "joined": 4}
    counts = {"evaluated": 2, "failed": 0, "missing": 0}
    sentence = denominator_sentence(counts | {"views": told})
    assert sentence.endswith("or unusable. Each map is of 4 views, joined in time.")
    three = denominator_sentence(counts | {"views": told | {"per_clip": 3}})
    assert "joined in time. Probabilities are averaged over 3 views a clip" in three


def test_metrics_count_clips_and_list_what_lacks_views():
    # Planned are three views a clip; one of "a" failed, and all of "lost".
    failures = [{"id": "a"}, {"id": "lost"}, {"id": "lost"}, {"id": "lost"}]
    counts = count_views(IDS, failures)
    assert (counts.num_clips, counts.failed) == (2, ("lost",))
    answers = average_views(IDS, LABELS, softmax(LOGITS), NEURONS)
    metrics = assemble_metrics(
        {"dsts": HeadResult("DSTS", answers, num_parameters=1, num_neurons=3)},
        denominators=Denominators(counts.num_clips, len(counts.failed)),
        split="test",
        store="f",
        bootstrap=Bootstrap(10, 0.95, 0),
        views=counts.describe(),
    )
    assert (metrics["evaluated"], metrics["failed"]) == (2, 1)
    assert metrics["heads"]["dsts"]["top1"] == 0.0
    assert metrics["views"] == {
        "per_clip": 3,
        "averaged": "probabilities",
        "incomplete": [{"id": "a", "stored": 2, "planned": 3}],
    }
    usage = metrics["heads"]["dsts"]["routing"]["layers"][0]["usage"]
    np.testing.assert_allclose(usage, [3 / 5, 1 / 5, 1 / 5])
    assert denominator_sentence(metrics).endswith(
        "averaged over 3 views a clip; clips with fewer: 1 (a)."
    )
