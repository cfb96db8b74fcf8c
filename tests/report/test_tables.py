"""Tables: escaped in each format, in the paper's layout, empty where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsts_pipeline.report.tables import (
    Cell,
    Table,
    beside_table,
    make_tables,
    paper_tables,
    row,
    to_latex,
    to_markdown,
)
from tests.report.report_example import make_inputs

SMALL = {"num_clips": 60, "num_classes": 8, "num_neurons": 3, "num_layers": 2}


def variant(mean, against=None):
    figure = {"mean": mean, "std": 0.01, "low": mean - 0.02, "high": mean + 0.02}
    return {
        "title": "a variant",
        "num_parameters": 1234,
        "top1": figure,
        "class_wise": figure,
        "versus_reference": against,
    }


def texts(table, number):
    return [cell.plain() for cell in table.rows[number].cells]


def test_what_means_something_to_a_format_is_escaped():
    only = row("a_b|c & 50 %", Cell("1", "<0 to $2>"), emphasised=True)
    table = Table("odd", "A {caption} #1", ("na*me", "x^2"), [only])
    markdown, latex = to_markdown(table), to_latex(table)
    assert r"| **a\_b\|c &amp; 50 %** | **1 (&lt;0 to $2&gt;)** |" in markdown
    assert r"\textbf{a\_b\textbar{}c \& 50 \%} & " in latex
    assert r"\caption{A \{caption\} \#1}" in latex
    assert r"na*me & x\textasciicircum{}2 \\" in latex


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="table odd: row"):
        Table("odd", "", ("a", "b"), [row("1")])


def test_what_no_head_has_been_compared_with_has_no_column():
    inputs = make_inputs(**SMALL)
    with_baseline = make_tables(inputs, 3)["results"]
    assert (
        with_baseline.columns[-1] == "against baseline" and "last column" in with_baseline.caption
    )
    heads = {
        name: head | {"versus_baseline": None} for name, head in inputs.metrics["heads"].items()
    }
    metrics = inputs.metrics | {"heads": heads, "baseline": None}
    without = make_tables(replace(inputs, metrics=metrics), 3)["results"]
    assert without.columns[-1] == "parameters" and "last column" not in without.caption


def test_without_an_ablation_the_tables_are_the_papers_and_say_what_to_run():
    tables = paper_tables(make_inputs(**SMALL))
    assert list(tables) == [f"table_{n}" for n in range(1, 8)]
    assert "not run: python cli.py ablate" in tables["table_5"].caption
    assert tables["table_5"].columns == ("variant", "top-1", "class-wise")
    assert texts(tables["table_5"], 0) == ["without UDL", "87.4", "76.7"]


def test_variants_stand_beside_the_papers_rows():
    worse = {"difference": -0.031, "low": -0.05, "high": -0.01}
    ablation = {
        "split": "test",
        "seeds": [0, 1],
        "variants": {"full": variant(0.75), "without_udl": variant(0.719, worse)},
    }
    tables = paper_tables(replace(make_inputs(**SMALL), ablation=ablation))
    assert texts(tables["table_5"], 0)[3:] == [
        "71.9 (69.9 to 73.9)",
        "71.9 (69.9 to 73.9)",
        "1,234",
        "\N{MINUS SIGN}3.1 (\N{MINUS SIGN}5.0 to \N{MINUS SIGN}1.0)",
    ]
    assert texts(tables["table_6"], 0)[3:] == ["", "", "", ""]
    assert texts(tables["table_6"], 1)[3] == "75.0 (73.0 to 77.0)"
    assert (
        "mean over 2 seeds" in tables["table_6"].caption and "not run" in tables["table_6"].caption
    )


def test_the_run_stands_below_the_papers_methods():
    inputs = make_inputs(**SMALL)
    first = paper_tables(inputs)["table_2"].rows[-1]
    dsts = inputs.metrics["heads"]["dsts"]
    assert first.cells[0].text == f"this run: {dsts['title']}" and first.emphasised
    assert first.cells[1].text == f"{100 * dsts['top1']:.1f}"
    rows = [each.cells[0].text for each in beside_table(inputs).rows]
    assert rows[-2:] == ["this run, stick_diving"] * 2


def test_systems_of_table_2_stand_below_the_papers_rows():
    ablation = {"split": "test", "seeds": [0], "variants": {"gst": variant(0.65) | {"title": "G"}}}
    table = paper_tables(replace(make_inputs(**SMALL), ablation=ablation))["table_2"]
    rows = [texts(table, number) for number in range(len(table.rows))]
    number = [row[0] for row in rows].index("GST")
    assert rows[number] == ["GST", "78.9", "69.5"]
    assert rows[number + 1] == ["this run: G", *["65.0 (63.0 to 67.0)"] * 2]
    assert rows[number + 2][0] == "TQN" and rows[number + 3][0] == "Swin-B"


def with_two_streams(dataset):
    inputs = make_inputs(**SMALL)
    probe = inputs.metrics["heads"]["linear_probe"]
    fused = probe | {"title": "2 streams", "top1": 0.25, "position": 9}
    heads = inputs.metrics["heads"] | {"two_streams": fused}
    return replace(
        inputs,
        dataset=dataset,
        metrics=inputs.metrics | {"heads": heads},
        predictions={**inputs.predictions, "two_streams": inputs.predictions["linear_probe"]},
    )


@pytest.mark.parametrize("dataset", ["stick_diving", "diving48"])
def test_a_system_of_the_papers_tables_stands_below_its_like(dataset):
    tables = make_tables(with_two_streams(dataset), 3)
    for number, printed in ((1, "66.6"), (2, "52.5")):
        names = [line.cells[0].text for line in tables[f"table_{number}"].rows]
        place = names.index("TSM, two streams")
        assert names[place + 1] == "this run: 2 streams"
        assert names.count("this run: 2 streams") == 1
        assert texts(tables[f"table_{number}"], place)[1] == printed
        assert texts(tables[f"table_{number}"], place + 1)[1].startswith("25.0")
        assert names[-1] == "this run: DSTS head (N = 10, L = 3)"


def test_other_data_without_such_a_system_have_none_of_the_papers_method_tables():
    inputs = replace(make_inputs(**SMALL), dataset="stick_diving")
    assert not {"table_1", "table_2"} & make_tables(inputs, 3).keys()
