"""Drawings: scales, gaps, escaping, and names that say the figures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from dsts_pipeline.report.plots.bars import neuron_panel
from dsts_pipeline.report.plots.curves import Series, curve_panel, key_panel
from dsts_pipeline.report.plots.dots import Dot, dot_panel
from dsts_pipeline.report.plots.matrices import (
    class_by_neuron_drawing,
    confusion_drawing,
    group_starts,
)
from dsts_pipeline.report.plots.svg import Scale, element, round_ticks, sheet


def parse(drawing):
    return ElementTree.fromstring(
        str(drawing.markup()).replace('xmlns="http://www.w3.org/2000/svg"', "")
    )


def test_elements_escape_texts_and_attributes_but_not_markup():
    inner = element("b", "<i>")
    assert element("g", "a & b", inner, class_="x", data_tip='"<') == Markup(
        '<g class="x" data-tip="&#34;&lt;">a &amp; b<b>&lt;i&gt;</b></g>'
    )
    assert element("path", d=None, x=1.50) == Markup('<path x="1.5"/>')


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (61, 79, [65, 70, 75]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_scale_maps_ends_and_survives_an_empty_span():
    scale = Scale(0, 10, 100, 0)
    assert (scale(0), scale(10), scale(2.5)) == (100, 0, 75)
    assert Scale(5, 5, 0, 10)(5) == 0


def test_curves_leave_out_gaps_and_panels_without_points():
    gap = Series("a", [0, 1, 2], [1.0, None, float("nan")])
    panel = curve_panel("loss", [gap, Series("b", [], [])])
    assert len(parse(panel).findall("circle")) == 1
    assert panel.label == "loss over epochs: a ends at 1."
    assert curve_panel("loss", [Series("b", [0], [None])]) is None


def test_counts_get_whole_ticks_only():
    panel = curve_panel("dead", [Series("a", [0, 1], [0, 1])], low=0, high=3, counts=True)
    ticks = [t.text for t in parse(panel).findall("text") if t.get("class") == "tick"]
    assert not any("." in tick for tick in ticks)


def test_dots_name_their_intervals():
    panel = dot_panel("top-1", [("", [Dot("a", 50, 40, 60), Dot("b", 99.5, 99, 100, 1)])])
    assert panel.label == "top-1: a 50.0 (40.0 to 60.0); b 99.5 (99.0 to 100.0)."
    assert len(parse(panel).findall("path")) == 2


def test_confusion_draws_a_cell_for_every_count_above_zero():
    confusion = np.array([[3, 1], [0, 0]])
    root = parse(confusion_drawing(confusion, ["<a>", "b"], [1]))
    cells = [rect for rect in root.findall("rect") if "cell" in rect.get("class")]
    assert [cell.get("data-tip") for cell in cells] == [
        "<a>: 3 of 4 clips right",
        "<a> taken for b: 1 of 4 clips",
    ]
    assert cells[1].get("data-row") == "0" and cells[1].get("data-column") == "1"


def test_many_classes_lose_their_labels_not_their_cells():
    drawing = confusion_drawing(np.eye(174, dtype=int), [f"class {i}" for i in range(174)])
    texts = [text.text for text in parse(drawing).findall("text")]
    assert "class 3" not in texts and "170" in texts
    assert drawing.width < 1100


def test_class_by_neuron_has_a_panel_per_layer():
    root = parse(class_by_neuron_drawing(np.ones((2, 3, 4), int), ["a", "b", "c"]))
    titles = [t.text for t in root.findall("text") if t.get("class") == "panel-title"]
    assert titles == ["Layer 1", "Layer 2"]
    assert sum("cell" in rect.get("class") for rect in root.findall("rect")) == 24


def test_neurons_show_use_beside_gates_and_name_the_dead():
    panel = neuron_panel(0, [0.75, 0.25, 0.0], [0.0, 0.5, 1.0])
    texts = [text.text for text in parse(panel).findall("text")]
    assert "dead" in texts and "75 %" in texts and "100 %" in texts
    assert "time" not in [t.text for t in parse(neuron_panel(0, [1.0], None)).findall("text")]


def test_a_neuron_with_one_clip_in_a_thousand_is_not_shown_as_none():
    texts = [text.text for text in parse(neuron_panel(0, [0.999, 0.001], None)).findall("text")]
    assert "<1 %" in texts and "dead" not in texts


def test_rules_lie_where_the_first_attribute_changes():
    assert group_starts([("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")]) == [2, 3]
    assert group_starts([]) == []


def test_sheet_sets_drawings_in_rows():
    panel = curve_panel("loss", [Series("a", [0, 1], [2, 1])])
    whole = sheet([panel, panel, key_panel([Series("a", [], [])])], columns=2)
    assert whole.width > 2 * panel.width
    assert len(parse(whole).findall("svg")) == 3
