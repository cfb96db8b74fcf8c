"""Layout of results.json and results.csv, and the table beside the paper's."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.params import load_settings, overrides_of
from dsts_pipeline.metrics import HeadResult, Predictions
from dsts_pipeline.metrics.ablation import (
    PAPER_ROWS,
    AblationRun,
    AblationVariant,
    ablation_table,
    assemble_ablation,
    paper_figures,
    results_csv,
)
from dsts_pipeline.metrics.intervals import Bootstrap
from tests.pipeline import params_of

LABELS = np.arange(40) % 4
HISTORY = (
    {"epoch": 0, "heldout_accuracy": 0.25, "best": True, "best_accuracy": 0.25, "seconds": 2.0},
    {"epoch": 1, "heldout_accuracy": 0.5, "best": True, "best_accuracy": 0.5, "seconds": 3.0},
    {"epoch": 2, "heldout_accuracy": 0.4, "best": False, "best_accuracy": 0.5, "seconds": 3.0},
)


def run(seed, num_right, routed=True, order=slice(None)):
    answers = np.where(np.arange(40) < num_right, LABELS, (LABELS + 1) % 4)
    probabilities = np.full((40, 4), 0.1)
    probabilities[np.arange(40), answers] = 0.7
    names = np.array([f"clip{n}" for n in range(40)])
    neurons = np.zeros((40, 2), np.int16)
    neurons[::2, 1] = 2
    predictions = Predictions(
        tuple(names[order]),
        LABELS[order],
        probabilities[order],
        neurons[order] if routed else None,
    )
    result = HeadResult("head", predictions, 123, num_neurons=3 if routed else None)
    return AblationRun(seed, result, HISTORY if routed else (), f"runs/{seed}/predictions.npz")


@pytest.fixture(scope="module")
def results():
    full = AblationVariant("full", (3, 4), {}, [run(0, 30), run(1, 34), run(2, 32)])
    backwards = slice(None, None, -1)
    worse = [run(0, 20, order=backwards), run(1, 22), run(2, 23)]
    same = [run(seed, 10, routed=False) for seed in range(3)]
    return assemble_ablation(
        {
            "full": full,
            "without_sts": AblationVariant("without STS", (3,), {"head.x": 1}, worse),
            "baseline": AblationVariant("baseline", (4,), {}, same),
            "mine": AblationVariant("mine", (), {}, [run(0, 30)], ["mine, seed 1: diverged"]),
            "none": AblationVariant("none", (), {}, [], ["none, seed 0: diverged"]),
        },
        reference="full",
        split="val",
        store="abc",
        seeds=[0, 1, 2],
        bootstrap=Bootstrap(200, 0.95, 0),
        provenance={"commit": "c"},
    )


def test_contract_of_the_report(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    head = {name: results[name] for name in ("reference", "split", "store", "seeds", "provenance")}
    expected = {"reference": "full", "split": "val", "store": "abc", "seeds": [0, 1, 2]}
    assert head == expected | {"provenance": {"commit": "c"}}
    for variant in results["variants"].values():
        assert {"title", "table", "settings", "num_parameters", "runs"} <= set(variant)
    full, worse = results["variants"]["full"], results["variants"]["without_sts"]
    assert full["versus_reference"] is None and full["num_parameters"] == 123
    assert set(full["top1"]) == {"mean", "std", "low", "high"}
    assert full["top1"]["mean"] == pytest.approx((30 + 34 + 32) / 120)
    assert full["class_wise"]["mean"] == pytest.approx(full["top1"]["mean"], abs=0.02)
    assert full["top5"]["mean"] == 1.0
    versus = worse["versus_reference"]
    names = {"difference", "low", "high", "p_value", "test", "num_pairs"}
    assert names <= set(versus) and names <= set(versus["class_wise"])
    assert versus["difference"] == pytest.approx((65 - 96) / 120)
    assert versus["by_clip"]["difference"] == pytest.approx(versus["difference"])
    assert versus["num_pairs"] == 3 and versus["low"] < versus["difference"] < versus["high"] < 0
    other = results["variants"]["baseline"]["versus_reference"]
    assert other["p_value"] < versus["p_value"] == versus["p_value_holm"] < 0.05
    assert other["p_value_holm"] == pytest.approx(2 * other["p_value"])


def test_what_is_missing_is_null(results):
    mine, none = results["variants"]["mine"], results["variants"]["none"]
    assert mine["versus_reference"]["num_pairs"] == 1
    assert mine["versus_reference"]["p_value"] is None
    assert mine["top1"]["std"] is None and mine["failures"] == ["mine, seed 1: diverged"]
    assert none["top1"] is none["versus_reference"] is none["num_parameters"] is None


def test_rows_of_the_csv(results):
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [(row["variant"], row["seed"]) for row in rows[:4]] == [
        ("full", "0"), ("full", "1"), ("full", "2"), ("without_sts", "0"),
    ]  # fmt: skip
    assert len(rows) == 10
    first, baseline = rows[0], rows[6]
    assert float(first["top1"]) == 0.75 and first["table"] == "3 4" and first["epochs"] == "3"
    assert first["best_epoch"] == "2" and first["heldout_accuracy"] == "0.5"
    assert float(first["train_seconds"]) == 8.0
    assert float(first["layer_2_entropy"]) == pytest.approx(np.log(2))
    assert (first["layer_1_dead"], first["layer_2_dead"]) == ("2", "1")
    assert baseline["variant"] == "baseline" and baseline["layer_1_dead"] == ""
    assert float(first["loss"]) == pytest.approx(-(0.75 * np.log(0.7) + 0.25 * np.log(0.1)), 1e-5)


def test_titles_are_no_formulas_in_the_csv(results):
    titled = results | {"variants": {"mine": results["variants"]["mine"] | {"title": "=1+1"}}}
    (row,) = csv.DictReader(io.StringIO(results_csv(titled)))
    assert row["title"] == "'=1+1" and row["variant"] == "mine"


def test_table_prints_beside_the_papers(results):
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(ablation_table(results))
    text = console.export_text()
    lines = [line for line in text.splitlines() if "without STS" in line]
    assert "54.2 (" in lines[0] and "-25.8 (" in lines[0]
    assert "87.2 / 76.5" in lines[0] and "-1.2" in lines[0]
    assert "Table 3: spatio-temporal specialization" in text and "Table 4: synapse" in text
    assert text.count("│   full ") == 2 and "…" not in text
    assert "Diverged: mine, seed 1" in text


def test_every_variant_of_the_papers_tables_has_its_row(repository):
    overrides = overrides_of("paper_tables", repository / "configs" / "experiment")
    settings = load_settings(params_of(), overrides)
    listed = {variant.name: variant.table for variant in settings.ablate.variants}
    for number, rows in PAPER_ROWS.items():
        for name in rows:
            assert number in listed[name]
            assert paper_figures(number, name)["top1"] > 78
    assert paper_figures(7, "layers_5") == {"top1": 88.2, "class_wise": 78.2}
    assert paper_figures(3, "linear_probe") is None


def test_nothing_finished_is_told():
    with pytest.raises(DataError, match="no finished training"):
        assemble_ablation(
            {"full": AblationVariant("full", (), {}, [])},
            reference="full",
            split="test",
            store="",
            seeds=[0],
            bootstrap=Bootstrap(),
            provenance={},
        )
