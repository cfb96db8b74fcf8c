"""The page about several runs: what it compares, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import Bootstrap
from dsts_pipeline.report.comparison import (
    Run,
    comparison_figures,
    comparison_tables,
    render_comparison,
)
from tests.report.report_example import make_inputs
from tests.report.test_page import HOSTILE, outline, without_scripts

SMALL = {"num_clips": 60, "num_classes": 8, "num_neurons": 3, "num_layers": 2}


def two_runs(name="other"):
    """One run, and the same with its first ten clips answered right and in another order."""
    first = make_inputs(**SMALL)
    answers = first.predictions["dsts"]
    better = answers.probabilities.copy()
    better[:10] = np.eye(8)[answers.labels[:10]]
    order = np.random.default_rng(0).permutation(60)
    changed = replace(
        answers,
        clip_ids=tuple(answers.clip_ids[i] for i in order),
        labels=answers.labels[order],
        probabilities=better[order],
        neurons=answers.neurons[order],
    )
    metrics = json.loads(json.dumps(first.metrics))
    metrics["provenance"]["settings"]["train"]["epochs"] = 24
    other = replace(first, metrics=metrics, predictions=first.predictions | {"dsts": changed})
    return [Run("first", first), Run(name, other)]


def test_differences_are_paired_whatever_the_order_of_the_clips():
    runs = two_runs()
    table = comparison_tables(runs, Bootstrap(200))["differences"]
    answers = runs[0].inputs.answers
    gained = int((answers.predicted[:10] != answers.labels[:10]).sum())
    assert gained > 0
    row = [cell.text for cell in table.rows[0].cells]
    assert row[0] == "other" and row[1] == f"+{100 * gained / 60:.1f}"
    assert row[4:6] == [str(gained), "0"]


def test_the_matrix_shows_what_changed_and_in_which_direction():
    runs = two_runs()
    drawing = str(comparison_figures(runs)["difference_1"].panels[0].page_svg)
    right = [int(n) for n in re.findall(r": (\d+) more right", drawing)]
    gone = [int(n) for n in re.findall(r": (\d+) fewer taken for", drawing)]
    before, after = (run.inputs.confusion("dsts").trace() for run in runs)
    assert sum(right) == sum(gone) == after - before
    assert "var(--c2)" in drawing and "var(--c5)" not in drawing  # none is for the worse


def test_the_page_holds_all_parts_and_the_settings_that_differ():
    page = render_comparison(two_runs(), Bootstrap(200))
    found = outline(page.html)
    assert {"summary", "curves", "confusion", "routing", "run"} <= set(found.ids)
    settings = page.tables["settings"]
    assert [[cell.text for cell in row.cells] for row in settings.rows] == [
        ["train.epochs", "12", "24"]
    ]
    assert {"neurons_0", "neurons_1", "class_by_neuron_1", "difference_1"} <= set(page.figures)


def test_too_few_clips_have_no_intervals_in_any_place():
    bounded = render_comparison(two_runs(), Bootstrap(200))
    assert "with intervals" in bounded.html and "(paired" not in bounded.html
    why = {"intervals": "60 test clips: too few for them"}
    few = [
        Run(run.name, replace(run.inputs, metrics=run.inputs.metrics | {"left_out": why}))
        for run in two_runs()
    ]
    page = render_comparison(few, Bootstrap(200))
    assert page.html.count(why["intervals"]) == 1
    assert "interval" not in without_scripts(page.html).split("</style>")[1]
    cells = [c for n in ("differences", "figures") for r in page.tables[n].rows for c in r.cells]
    assert not any(cell.detail for cell in cells)


def test_names_of_runs_do_no_harm():
    html = render_comparison(two_runs(HOSTILE), Bootstrap(200)).html
    assert len([tag for tag, _ in outline(html).tags if tag == "script"]) == 4
    assert "<img" not in without_scripts(html)


def test_what_cannot_be_compared_is_refused_and_says_why():
    first, other = two_runs()
    with pytest.raises(DataError, match="one run compares with nothing"):
        render_comparison([first], Bootstrap(200))
    with pytest.raises(DataError, match="named twice"):
        render_comparison([first, first], Bootstrap(200))
    ids = ("elsewhere", *first.inputs.answers.clip_ids[1:])
    moved = {n: replace(p, clip_ids=ids) for n, p in first.inputs.predictions.items()}
    with pytest.raises(DataError, match="other was evaluated on other clips than first: 2 are in"):
        render_comparison(
            [first, Run("other", replace(other.inputs, predictions=moved))], Bootstrap(200)
        )
    names = [*first.inputs.class_names[:7], "another"]
    with pytest.raises(DataError, match="compare runs of one data set"):
        render_comparison(
            [first, Run("other", replace(other.inputs, class_names=names))], Bootstrap(200)
        )
