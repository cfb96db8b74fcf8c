"""Drawings: scales, gaps, escaping, and names that say the figures."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image

from dsts_pipeline.report.charts import (
    HEAD_NUMBERS,
    Dot,
    Series,
    bar_chart,
    class_by_neuron_chart,
    confusion_chart,
    curve_chart,
    difference_chart,
    dot_chart,
    group_starts,
    head_number,
    light_colours,
    neuron_chart,
    png_of,
    sheet_svg,
)
from dsts_pipeline.report.figures import accuracy_figure


def texts(chart):
    return [e.text for e in ElementTree.fromstring(str(chart.page_svg)).iter() if e.text]


def test_curves_leave_out_gaps_and_panels_without_points():
    gap = Series("a", [0, 1, 2], [1.0, None, float("nan")])
    chart = curve_chart("loss", [gap, Series("b", [], [])])
    (rows,) = chart.drawing.to_dict()["datasets"].values()
    assert [row["tip"] for row in rows] == ["a, epoch 0: 1"]
    assert chart.label == "loss over epochs: a ends at 1."
    assert curve_chart("loss", [Series("b", [0], [None])]) is None


def test_charts_are_sound_vega_lite():
    series = [Series("a", [0, 1], [0, 1]), Series("b", [0, 1], [1, 1], 1, faint=True)]
    dots = [("", [Dot("a", 50, 40, 60)])]
    for chart in (
        curve_chart("dead", series, low=0, high=3, counts=True, reference=(1, "even")),
        dot_chart("top-1", dots),
        dot_chart("attributes", [("takeoff", dots[0][1])]),
        neuron_chart(0, [0.5, 0.5], [0.1, 0.9]),
        bar_chart("gain", "points", [("a", 2.0, "a: 2"), ("a", -1.0, "a: -1")], is_gain=True),
        confusion_chart(np.eye(3, dtype=int), ["a", "b", "c"], [1]),
        difference_chart(np.eye(3, dtype=int), ["a", "b", "c"]),
        class_by_neuron_chart(np.ones((2, 3, 4), int), ["a", "b", "c"]),
    ):
        chart.drawing.to_dict(validate=True)


def test_counts_get_whole_ticks_only():
    chart = curve_chart("dead", [Series("a", [0, 1], [0, 1])], low=0, high=3, counts=True)
    assert {"0", "1", "2", "3"} <= set(texts(chart))
    assert not any("." in text for text in texts(chart))


def test_dots_name_their_intervals():
    chart = dot_chart("top-1", [("", [Dot("a", 50, 40, 60), Dot("b", 99.5, 99, 100, 1)])])
    assert chart.label == "top-1: a: 50.0 % (40.0 to 60.0); b: 99.5 % (99.0 to 100.0)."
    assert {"a", "b", "50.0 %", "99.5 %"} <= set(texts(chart))


def test_charts_escape_names_and_follow_the_colours_of_the_page():
    chart = curve_chart("<b>&", [Series("<script>", [0, 1], [0, 1], 2)])
    drawing = str(chart.page_svg)
    assert "<script" not in drawing and {"<b>&", "<script>"} <= set(texts(chart))
    assert "var(--c2)" in drawing and light_colours()["--c2"] not in drawing
    assert "var(--c2)" in json.dumps(chart.page_vega)


def test_two_drawings_of_a_page_share_no_clip_path():
    charts = [curve_chart(f"loss {i}", [Series("a", [0, 1], [0, 1])]) for i in range(2)]
    ids = [set(re.findall(r'id="([^"]+)"', str(chart.page_svg))) for chart in charts]
    assert ids[0] and ids[1] and not ids[0] & ids[1]


def test_a_sheet_of_charts_is_a_file_of_its_own_and_a_picture():
    charts = [curve_chart(title, [Series("a", [0, 1], [0, 1])]) for title in ("one", "two")]
    svg = sheet_svg(charts)
    assert "var(" not in svg and light_colours()["--paper"] in svg
    assert {"one", "two"} <= {e.text for e in ElementTree.fromstring(svg).iter()}
    picture = Image.open(io.BytesIO(png_of(svg)))
    assert picture.width > 1200 and len(picture.getcolors(1 << 20)) > 10


def cells(chart):
    """Attributes of each cell of a matrix, by what it says."""
    elements = ElementTree.fromstring(str(chart.page_svg)).iter()
    return {e.get("data-tip"): e.attrib for e in elements if e.get("data-tip")}


def test_confusion_draws_a_cell_for_every_count_above_zero():
    found = cells(confusion_chart(np.array([[3, 1], [0, 0]]), ['<a> "1.2345"', "b"], [1]))
    right, wrong = '<a> "1.2345": 3 of 4 clips right', '<a> "1.2345" taken for b: 1 of 4 clips'
    assert list(found) == [right, wrong]
    assert found[right]["fill"] == "var(--c2)" and found[wrong]["fill"] == "var(--c5)"
    assert float(found[right]["opacity"]) > float(found[wrong]["opacity"]) > 0.5
    assert not any("role" in cell or "aria-label" in cell for cell in found.values())


def test_cells_lie_in_their_rows_and_columns_on_a_ground_as_large_as_all():
    chart = confusion_chart(np.arange(9).reshape(3, 3), ["a", "b", "c"])
    found = cells(chart).values()
    places = [re.match(r"M([\d.]+),([\d.]+)h", cell["d"]).groups() for cell in found]
    expected = [(48 * j + 0.3, 48 * i + 0.3) for i in range(3) for j in range(3)][1:]
    np.testing.assert_allclose(np.array(places, float), expected)
    ground = 'class="background" aria-hidden="true" d="M0,0h144v144h-144Z" fill="var(--plane)"'
    assert str(chart.page_svg).count(ground) == 1


def test_many_classes_lose_their_labels_not_their_cells():
    chart = confusion_chart(np.eye(174, dtype=int), [f"class {i}" for i in range(174)])
    assert len(cells(chart)) == 174
    assert "class 3" not in texts(chart) and "170" in texts(chart)
    assert float(ElementTree.fromstring(str(chart.page_svg)).get("width")) < 1100
    named = texts(confusion_chart(np.eye(48, dtype=int), [f"class {i}" for i in range(48)]))
    assert {"class 0", "class 47", "1", "48"} <= set(named)


def test_class_by_neuron_has_a_panel_per_layer():
    chart = class_by_neuron_chart(np.ones((2, 3, 4), int), ["a", "b", "c"])
    assert [text for text in texts(chart) if "Layer" in text] == ["Layer 1", "Layer 2"]
    assert len(cells(chart)) == 24


def test_neurons_show_use_beside_gates_and_name_the_dead():
    chart = neuron_chart(0, [0.75, 0.25, 0.0], [0.0, 0.5, 1.0])
    assert {"dead", "75 %", "space", "time"} <= set(texts(chart))
    assert "neuron 3 100%" in chart.label
    assert "time" not in texts(neuron_chart(0, [1.0], None))


def test_a_neuron_with_one_clip_in_a_thousand_is_not_shown_as_none():
    found = texts(neuron_chart(0, [0.999, 0.001], None))
    assert "<1 %" in found and "dead" not in found


def test_rules_lie_where_the_first_attribute_changes():
    assert group_starts([("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")]) == [2, 3]
    assert group_starts([]) == []


def test_bars_reach_to_both_sides_and_keep_rows_of_one_name_apart():
    rows = [("a <b>", 40.0, "first"), ("a <b>", 0.2, "second"), ("c", -12.0, "third")]
    found = texts(bar_chart("gain", "points", rows, is_gain=True))
    assert {"+40", "+0", "\N{MINUS SIGN}12", "c"} <= set(found) and found.count("a <b>") == 2
    drawing = str(bar_chart("gain", "points", rows, is_gain=True).page_svg)
    assert "var(--c2)" in drawing and "var(--c5)" in drawing and "<b>" not in drawing
    alone = str(bar_chart("need", "points", rows).page_svg)
    assert "var(--c3)" in alone and "var(--c2)" not in alone


def test_a_head_keeps_its_colour_whatever_other_heads_there_are():
    figures = {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6}
    figures |= {f"class_wise{end}": figures[f"top1{end}"] for end in ("", "_low", "_high")}
    dsts = ("DSTS", head_number("dsts"), figures)
    alone = str(accuracy_figure([dsts]).panels[0].page_svg)
    beside = str(accuracy_figure([("P", head_number("linear_probe"), figures), dsts]).as_file())
    assert "var(--c2)" in alone and "var(--c1)" not in alone
    assert light_colours()["--c2"] in beside and light_colours()["--c1"] in beside
    assert len({head_number(name) for name in HEAD_NUMBERS}) == len(HEAD_NUMBERS)
    assert head_number("another") >= 3


def test_dvc_draws_heads_in_the_colours_of_the_report():
    looks = {
        "domain": list(HEAD_NUMBERS),
        "range": [light_colours()[f"--c{number}"] for number in HEAD_NUMBERS.values()],
    }
    found = []

    def collect(value):
        if isinstance(value, list):
            for one in value:
                collect(one)
        elif isinstance(value, dict):
            if value.get("field") == "head" and value.get("title") == "head":
                found.append(value["scale"])
            for one in value.values():
                collect(one)

    for path in sorted(Path(".dvc/plots").glob("*.json")):
        collect(json.loads(path.read_text()))
    assert len(found) == 5 and all(one == looks for one in found)
