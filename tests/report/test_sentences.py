"""Sentences claim no more than the intervals carry."""

from __future__ import annotations

from dsts_pipeline.report.inputs import flatten, join_origins
from dsts_pipeline.report.page import lead_sentences
from dsts_pipeline.report.tables import make_tables, signed_points
from tests.report.report_example import make_inputs

SMALL = {"num_clips": 60, "num_classes": 8, "num_neurons": 3, "num_layers": 2}


def _with_difference(low, value, high):
    inputs = make_inputs(**SMALL)
    versus = inputs.metrics["heads"]["dsts"]["versus_baseline"]
    versus |= {"difference": value, "difference_low": low, "difference_high": high}
    return " ".join(lead_sentences(inputs))


def test_a_difference_whose_interval_holds_zero_is_called_no_more_than_chance():
    assert "choice of test clips alone can explain" in _with_difference(-0.01, 0.004, 0.018)
    clear = _with_difference(0.004, 0.021, 0.038)
    assert "alone can explain" not in clear
    assert "is +2.1 points (paired interval +0.4 to +3.8)." in clear


def test_every_other_head_is_named_beside_the_main_one():
    assert "For comparison, Linear probe reaches" in " ".join(lead_sentences(make_inputs(**SMALL)))


def test_differences_have_signs_and_no_negative_zero():
    assert signed_points(0.0213) == "+2.1"
    assert signed_points(-0.0213) == "\N{MINUS SIGN}2.1"
    assert signed_points(-0.0001) == "+0.0"


def test_pairs_say_in_what_they_differ_and_what_the_baseline_did():
    inputs = make_inputs(num_clips=600, num_classes=8, num_neurons=3, num_layers=1)
    table = make_tables(inputs, 12)["pairs"]
    assert table.rows and table.columns[-1] == "baseline"
    for row in table.rows:
        first, second, differs, forth, back, _, baseline = (cell.text for cell in row.cells)
        for one, two in zip(first.split(), second.split(), strict=True):
            assert (f"({one} / {two})" in differs) == (one != two)
        assert int(forth) + int(back) > 0 and int(baseline) >= 0


def test_origins_are_joined_and_differences_named():
    joined = join_origins(
        {
            "evaluation": {"commit": "a", "versions": {"torch": "2"}, "settings": {"seed": 0}},
            "features": {
                "commit": "b",
                "versions": {"torch": "2"},
                "settings": {"store": {"x": None}},
            },
        }
    )
    assert joined.facts == [("commit", "a (evaluation); b (features)")]
    assert joined.versions == [("torch", "2")]
    assert joined.settings == [("seed", "0"), ("store.x", "none")]
    assert flatten({"a": {"b": True}, "c": [1, 2]}) == [("a.b", "yes"), ("c", "1, 2")]
