"""The content of routing.json, from heads with one view and with several views a clip."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.metrics import (
    Bootstrap,
    HeadResult,
    assemble_routing,
    average_views,
)
from tests.metrics.examples import random_answers

NUM_CLIPS, CLASSES, NEURONS = 60, ("a", "b", "c", "d"), 3
ATTRIBUTES = [["Back"], ["Back"], ["Forward"], ["Forward"]]


def heads(num_views=1, **changes):
    """A baseline and a head whose first layer follows the class, its second nothing."""
    generator = np.random.default_rng(0)
    probabilities, labels = random_answers(1, NUM_CLIPS, 4)
    ids = [f"c{clip}" for clip in range(NUM_CLIPS) for _ in range(num_views)]
    labels, rows = labels.repeat(num_views), probabilities.repeat(num_views, axis=0)
    first = np.where(generator.random(len(ids)) < 0.8, labels % NEURONS, 0)
    neurons = np.stack([first, generator.integers(NEURONS, size=len(ids))], axis=1)
    answers = average_views(ids, labels, rows, neurons)
    other = average_views(ids, labels, random_answers(2, NUM_CLIPS, 4)[0].repeat(num_views, axis=0))
    columns = {
        "num_neurons": NEURONS,
        "temporal_share": [[0.1, 0.5, 0.9]] * 2,
        "features": answers.labels[:, None] * np.eye(4)[0] + generator.standard_normal((60, 4)),
        "without_time": other.probabilities,
    } | changes
    return {
        "baseline": HeadResult("base", other, 1),
        "dsts": HeadResult("DSTS", answers, 2, **columns),
    }


def assemble(given, **changes):
    arguments = {
        "class_names": CLASSES,
        "bootstrap": Bootstrap(100),
        "how": EvaluateSettings(num_permutations=50, temporal_need="shuffle"),
        "attribute_names": ["takeoff"],
        "attributes": ATTRIBUTES,
    }
    return assemble_routing(given, **(arguments | changes))


def test_what_follows_classes_and_what_does_not():
    routing = assemble(heads())
    assert list(routing["heads"]) == ["dsts"] and routing["baseline"] == "baseline"
    head = routing["heads"]["dsts"]
    first, second = head["layers"]
    assert set(first["information"]) == {"class", "takeoff"}
    assert first["information"]["class"]["adjusted"] > 0.3 > 0.1
    assert abs(second["information"]["class"]["adjusted"]) < 0.1
    assert first["information"]["takeoff"]["group_entropy"] < np.log(2) + 1e-9
    assert np.sum(first["class_by_neuron"]) == NUM_CLIPS
    assert np.shape(first["class_by_neuron"]) == (4, NEURONS)
    assert head["routes"]["possible"] == 9 and head["routes"]["distinct"] <= 9
    assert all(name in {f"c{i}" for i in range(60)} for name in first["central_clips"][0])
    assert head["hard_pairs"]["num_pairs"] == 6
    assert first["view_changes"] is None and head["routes"]["view_changes"] is None
    assert json.loads(json.dumps(routing, allow_nan=False)) == routing
    assert json.dumps(assemble(heads())) == json.dumps(routing)


def test_several_views_are_counted_but_are_no_more_evidence():
    head = assemble(heads(num_views=3))["heads"]["dsts"]
    assert (head["clips"], head["views"]) == (60, 180)
    layer = head["layers"][1]
    assert np.sum(layer["class_by_neuron"]) == 180
    assert layer["view_changes"]["clips"] == 60
    # Random views of a clip agree as often as views of any clips.
    apart, by_chance = (
        layer["view_changes"]["pairs_apart"],
        layer["view_changes"]["pairs_apart_null"],
    )
    assert apart == pytest.approx(by_chance, abs=0.12)
    assert layer["information"]["class"]["p"] > 0.02
    assert head["routes"]["view_changes"]["changed"] >= layer["view_changes"]["changed"]


def test_what_was_not_measured_is_null():
    given = heads(features=None, without_time=None, temporal_share=None)
    head = assemble(given, attributes=())["heads"]["dsts"]
    assert head["class_need"] is None and set(head["layers"][0]["information"]) == {"class"}
    assert all(head["layers"][0][name] is None for name in ("gates", "similarity", "central_clips"))
    del given["baseline"]
    routing = assemble(given)
    assert routing["baseline"] is None and routing["heads"]["dsts"]["hard_pairs"] is None
    assert assemble({"baseline": heads()["baseline"]})["heads"] == {}


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"features \(3, 2\) do not fit"):
        heads(features=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"without_time \(60, 5\) do not fit"):
        heads(without_time=np.zeros((60, 5)))
