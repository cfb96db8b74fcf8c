"""The content of metrics.json and the table made from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    Predictions,
    assemble_metrics,
    results_table,
)

NUM_CLIPS, NUM_CLASSES = 12, 6
ATTRIBUTES = [[("Back", "Forward")[i % 2], ("TUCK", "PIKE", "FREE")[i % 3]] for i in range(6)]


def _predictions(num_right, neurons=None):
    labels = np.arange(NUM_CLIPS) % NUM_CLASSES
    answers = np.where(np.arange(NUM_CLIPS) < num_right, labels, (labels + 1) % NUM_CLASSES)
    ids = tuple(f"c{i}" for i in range(NUM_CLIPS))
    return Predictions(ids, labels, np.eye(NUM_CLASSES)[answers], neurons)


def _assemble(**changes):
    neurons = np.stack([np.arange(NUM_CLIPS) % 2, np.zeros(NUM_CLIPS)], axis=1)
    heads = {
        "baseline": HeadResult("Backbone's own <classifier>", _predictions(6), 774),
        "dsts": HeadResult("DSTS [N=3]", _predictions(9, neurons), 9000, 3, [[0.1, 0.5, 1.0]] * 2),
    }
    arguments = {
        "denominators": Denominators(NUM_CLIPS, failed=2, missing=1),
        "split": "test",
        "store": "abc123",
        "bootstrap": Bootstrap(200),
        "attribute_names": ("takeoff", "position"),
        "attributes": ATTRIBUTES,
    }
    return assemble_metrics(changes.pop("heads", heads), **(arguments | changes))


def test_figures_are_those_worked_out_by_hand():
    metrics = _assemble()
    base, dsts = metrics["heads"]["baseline"], metrics["heads"]["dsts"]
    assert (base["top1"], dsts["top1"]) == (0.5, 0.75)
    assert dsts["top1_low"] < 0.75 < dsts["top1_high"]
    assert dsts["class_wise"] == pytest.approx(0.75)
    assert dsts["num_parameters"] == 9000
    assert (metrics["evaluated"], metrics["failed"], metrics["missing"]) == (12, 2, 1)
    assert dsts["versus_baseline"]["difference"] == pytest.approx(0.25)
    assert dsts["versus_baseline"]["only_head_right"] == 3
    assert dsts["versus_baseline"]["only_baseline_right"] == 0
    assert base["versus_baseline"] is None and base["routing"] is None
    # A wrong answer is the next class: the other takeoff and the other position.
    assert dsts["attributes"]["takeoff"]["accuracy"] == pytest.approx(0.75)


def test_routing_stands_beside_the_gates():
    layers = _assemble()["heads"]["dsts"]["routing"]["layers"]
    assert layers[0]["usage"] == [0.5, 0.5, 0.0]
    assert layers[0]["entropy"] == pytest.approx(np.log(2))
    assert [layer["dead"] for layer in layers] == [1, 2]
    assert layers[1]["temporal_share"] == [0.1, 0.5, 1.0]


def test_it_is_plain_json_and_repeats():
    text = json.dumps(_assemble(), sort_keys=True, allow_nan=False)
    assert text == json.dumps(_assemble(), sort_keys=True, allow_nan=False)


def test_details_stand_beside_the_headline():
    metrics = _assemble(class_names=[f"class {k}" for k in range(6)])
    dsts = metrics["heads"]["dsts"]
    assert metrics["classes"][5] == "class 5" and len(_assemble()["classes"]) == 6
    assert dsts["per_class"]["clips"] == [2] * 6 and dsts["per_class"]["right"] == [
        2,
        2,
        2,
        1,
        1,
        1,
    ]
    takeoff = dsts["attributes"]["takeoff"]
    assert (takeoff["clips"], takeoff["right"]) == (12, 9)
    assert takeoff["values"]["values"] == ["Back", "Forward"]
    assert takeoff["values"]["clips"] == [6, 6] and takeoff["values"]["right"] == [5, 4]
    # Sure and wrong three times of twelve: 2 each by Brier, ECE 1/4.
    assert dsts["brier"] == pytest.approx(0.5) and dsts["brier_low"] < 0.5 < dsts["brier_high"]
    assert dsts["calibration"]["equal_width"]["ece"] == pytest.approx(0.25)
    assert dsts["calibration"]["equal_width"]["bins"][0]["clips"] == 12
    assert dsts["versus_baseline"]["mcnemar"]["exact_p"] == pytest.approx(0.25)


def test_every_pair_of_heads_is_compared_the_later_one_first():
    heads = {
        name: HeadResult(name, _predictions(n), 1) for name, n in (("a", 3), ("b", 6), ("c", 9))
    }
    found = _assemble(heads=heads)["comparisons"]
    assert [(row["first_head"], row["second_head"]) for row in found] == [
        ("b", "a"),
        ("c", "a"),
        ("c", "b"),
    ]
    assert [row["top1"]["difference"] for row in found] == pytest.approx([0.25, 0.5, 0.25])
    assert found[0]["attributes"]["takeoff"]["difference"] == pytest.approx(0.25)


def test_no_attributes_and_no_baseline_leave_their_figures_out():
    metrics = _assemble(attributes=(), baseline="other")
    assert metrics["baseline"] is None
    assert metrics["heads"]["dsts"]["attributes"] is None
    assert metrics["heads"]["dsts"]["versus_baseline"] is None


def test_counts_that_disagree_are_refused():
    with pytest.raises(DataError, match="predictions for 12 clips, expected 11"):
        _assemble(denominators=Denominators(11))
    with pytest.raises(DataError, match="no heads"):
        _assemble(heads={})
    with pytest.raises(DataError, match="3 class names for 6 classes"):
        _assemble(class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="temporal_share"):
        wrong = HeadResult("x", _predictions(3, np.zeros((12, 2))), 1, 3, [[0.5]])
        _assemble(heads={"dsts": wrong})


def _printed(metrics):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(metrics))
    return console.export_text()


def test_a_table_without_a_baseline_has_no_column_for_it():
    assert "top-1 vs baseline" in _printed(_assemble())
    assert "baseline" not in _printed(_assemble(baseline="other"))


def test_table_shows_percent_intervals_and_denominators():
    metrics = json.loads(json.dumps(_assemble(), sort_keys=True))
    text = _printed(metrics)
    assert text.index("Backbone's own <classifier>") < text.index("DSTS [N=3]")
    assert "75.0 (" in text and "9,000" in text and "+25.0 (" in text
    assert "12 of 15 clips evaluated; 2 failed to decode, 1 missing or unusable." in text
