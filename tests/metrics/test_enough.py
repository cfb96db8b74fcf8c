"""Few clips: what is left out, with its reason, and that results of many clips are as before."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from dsts_pipeline.metrics import Bootstrap, Denominators, HeadResult, assemble_metrics
from dsts_pipeline.metrics.enough import find_left_out
from dsts_pipeline.metrics.summary import plot_tables, results_table
from tests.metrics.examples import sure_answers


def left_out(sizes, num_bins=15, num_neurons=10):
    return find_left_out(sizes, split="test", num_bins=num_bins, num_neurons=num_neurons)


def test_nothing_is_left_out_of_enough():
    assert left_out([25] * 48) == {}
    assert left_out([9] * 6) == {}


def test_six_clips_of_three_classes():
    found = left_out([2, 2, 2])
    names = {"top5", "intervals", "per_class_intervals", "calibration", "information"}
    assert found.keys() == names | {"temporal_need"}
    assert found["intervals"] == "6 test clips: too few for intervals"
    assert found["top5"] == "3 classes: the right one is always among the first 5"


def test_each_has_a_bound_of_its_own():
    assert "top5" in left_out([100] * 5) and "top5" not in left_out([100] * 6)
    assert "intervals" in left_out([9]) and "intervals" not in left_out([10])
    assert "calibration" in left_out([29]) and "calibration" not in left_out([30])
    assert "information" in left_out([49]) and "information" not in left_out([50])
    assert "information" not in left_out([49], num_neurons=None)
    sparse = [4] * 30 + [0] * 5
    assert "of 30 classes" in left_out(sparse)["per_class_intervals"]


def shown(labels, num_classes):
    heads = {"dsts": HeadResult("DSTS", sure_answers(labels, labels, num_classes), 7)}
    metrics = assemble_metrics(
        heads,
        denominators=Denominators(len(labels)),
        split="test",
        store="s",
        bootstrap=Bootstrap(100),
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table(metrics))
    tables = plot_tables(metrics, {name: head.predictions for name, head in heads.items()})
    return metrics, console.export_text(), tables["heads.csv"]


def test_tables_leave_it_out_and_say_why():
    metrics, table, heads = shown(np.array([0, 0, 1, 1, 2, 2]), 3)
    assert "top-5" not in table and "intervals)" not in table and "100.0 (" not in table
    assert "6 test clips: too few for intervals" in " ".join(table.split())
    assert "top5" not in heads and metrics["heads"]["dsts"]["top5"] == 1.0


def test_results_of_many_clips_say_nothing_of_it():
    metrics, table, heads = shown(np.arange(200) % 8, 8)
    assert "left_out" not in metrics and "top-5" in table and "Left out" not in table
    assert "top5" in heads
