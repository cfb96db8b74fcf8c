"""Figures of a cross-validation: over all clips, intervals over folds and over whole groups."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import HeadResult, Predictions
from dsts_pipeline.metrics.ablation import (
    AblationRun,
    AblationVariant,
    CrossValidation,
    ablation_table,
    assemble_ablation,
    results_csv,
)
from dsts_pipeline.metrics.accuracy import class_wise_accuracy
from dsts_pipeline.metrics.intervals import (
    Bootstrap,
    over_folds,
    over_groups,
    over_seeds,
    paired_over_folds,
)
from dsts_pipeline.metrics.predictions import join_folds

BOOTSTRAP = Bootstrap(1000, 0.95, 0)


# ---- intervals -----------------------------------------------------------------------------------


def test_with_folds_of_one_size_it_is_students_interval_half_as_wide_again():
    hits = np.random.default_rng(0).random((5, 40)) < np.linspace(0.4, 0.8, 5)[:, None]
    found = over_folds(hits.ravel().astype(float), np.full(200, 1 / 200), np.repeat(range(5), 40))
    students = over_seeds(hits.mean(axis=1).tolist())
    assert (found["mean"], found["std"]) == pytest.approx((students["mean"], students["std"]))
    # Nadeau and Bengio: (1/K + test/train) in the place of 1/K.
    wider = np.sqrt((1 / 5 + 1 / 4) / (1 / 5))
    assert wider == pytest.approx(1.5)
    for side in ("low", "high"):
        expected = students["mean"] + wider * (students[side] - students["mean"])
        assert found[side] == pytest.approx(expected)


def test_with_folds_of_several_sizes_it_is_centred_on_all_clips():
    generator = np.random.default_rng(1)
    folds = np.repeat(np.arange(6), [10, 20, 30, 40, 50, 250])
    values = generator.random(400)
    found = over_folds(values, np.full(400, 1 / 400), folds)
    assert found["mean"] == pytest.approx(values.mean())
    # Literally: clusters of a ratio of sums.
    sums = np.array([values[folds == k].sum() for k in range(6)])
    sizes = np.bincount(folds)
    error = np.sqrt(6 / 5 * ((sums - values.mean() * sizes) ** 2).sum()) / 400
    half = stats.t.ppf(0.975, 5) * error * np.sqrt(1 + 6 / 5)
    assert (found["low"], found["high"]) == pytest.approx(
        (values.mean() - half, values.mean() + half)
    )


def test_a_paired_difference_has_the_p_value_of_the_corrected_t_test():
    generator = np.random.default_rng(2)
    differences = generator.choice([-1.0, 0.0, 0.0, 1.0, 1.0], 300)
    folds = np.repeat(np.arange(10), 30)
    found = paired_over_folds(differences, np.full(300, 1 / 300), folds)
    of_folds = differences.reshape(10, 30).mean(axis=1)
    mean, error = of_folds.mean(), of_folds.std(ddof=1) * np.sqrt(1 / 10 + 1 / 9)
    assert found["p_value"] == pytest.approx(2 * stats.t.sf(abs(mean) / error, 9))
    half = stats.t.ppf(0.975, 9) * error
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half))
    assert found["num_pairs"] == 10 and "over folds" in found["test"]
    even = np.full(300, 1 / 300)
    assert paired_over_folds(np.zeros(300), even, folds)["p_value"] == 1.0
    assert paired_over_folds(np.ones(300), even, folds)["p_value"] is None


def test_whole_groups_are_drawn():
    """Clips that are right or wrong by group: as uncertain as the groups are few."""
    groups = np.repeat(np.arange(16), 25)
    values = (groups % 2).astype(float)
    found = over_groups(values, groups, BOOTSTRAP)
    half = stats.t.ppf(0.975, 15) * np.sqrt(0.25 / 15)
    assert found["num_groups"] == 16
    assert found["low"] == pytest.approx(0.5 - half, abs=0.05)
    assert found["high"] == pytest.approx(0.5 + half, abs=0.05)
    single = over_groups(values, np.arange(400), BOOTSTRAP)
    plain = BOOTSTRAP.interval_of_mean(values)
    assert (single["low"], single["high"]) == pytest.approx((plain.low, plain.high), abs=2e-3)
    uneven = over_groups(values, np.repeat([0, 1, 2], [10, 190, 200]), BOOTSTRAP)
    assert 0 <= uneven["low"] <= values.mean() <= uneven["high"] <= 1


def test_intervals_over_few_groups_hold_as_often_as_they_say():
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(10), 20)
    held = held_plain = 0
    for number in range(400):  # people that differ, clips that do; the true mean is 0
        values = generator.normal(size=10)[groups] + generator.normal(size=200)
        bootstrap = Bootstrap(2000, 0.95, number)
        found = over_groups(values, groups, bootstrap)
        plain = bootstrap.interval_of_mean(values.reshape(10, 20).mean(axis=1))
        held += found["low"] <= 0.0 <= found["high"]
        held_plain += plain.low <= 0.0 <= plain.high
    assert held_plain / 400 < 0.925 and 0.93 <= held / 400 <= 0.97


# ---- results -------------------------------------------------------------------------------------

# Three folds of 20, 12 and 8 clips; groups of four clips.
FOLDS = np.repeat([0, 1, 2], [20, 12, 8])
LABELS = np.arange(40) % 3
NAMES = [f"clip{n}" for n in range(40)]
DEALT = CrossValidation(
    3, 0, dict(zip(NAMES, FOLDS.tolist(), strict=True)), {f"clip{n}": n // 4 for n in range(40)}
)
HISTORY = [
    {"epoch": 0, "heldout_accuracy": 0.5, "best": True, "best_accuracy": 0.5, "seconds": 2.0},
    {"epoch": 1, "heldout_accuracy": 0.4, "best": False, "best_accuracy": 0.5, "seconds": 2.0},
]


def hits_of(seed, share):
    return np.random.default_rng([seed, int(100 * share)]).random(40) < share


def run(seed, share):
    hits = hits_of(seed, share)
    answers = np.where(hits, LABELS, (LABELS + 1) % 3)
    probabilities = np.full((40, 3), 0.1)
    probabilities[np.arange(40), answers] = 0.8
    folds = {}
    for fold in range(3):
        rows = np.flatnonzero(FOLDS == fold)
        neurons = np.full((len(rows), 1), fold, np.int16)
        ids = tuple(NAMES[row] for row in rows)
        part = Predictions(ids, LABELS[rows], probabilities[rows], neurons)
        result = HeadResult("head", part, 123, num_neurons=3)
        folds[fold] = AblationRun(seed, result, HISTORY, f"runs/{seed}-{fold}/predictions.npz")
    joined = join_folds([folds[fold].result.predictions for fold in range(3)])
    return AblationRun(seed, HeadResult("head", joined, 123), folds=folds)


@pytest.fixture(scope="module")
def results():
    variants = {
        "full": AblationVariant("full", (3,), {}, [run(0, 0.8), run(1, 0.8)]),
        "worse": AblationVariant("worse", (), {}, [run(0, 0.5), run(1, 0.5)]),
        "one": AblationVariant("one", (), {}, [run(1, 0.6)], ["one, seed 0: diverged"]),
        "none": AblationVariant("none", (), {}, [], ["none, seed 0: diverged"]),
    }
    return assemble_ablation(
        variants,
        reference="full",
        split="test",
        store="abc",
        seeds=[0, 1],
        bootstrap=BOOTSTRAP,
        provenance={},
        dealt=DEALT,
    )


def test_figures_are_over_all_clips_with_intervals_over_folds_and_groups(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["folds"] == {
        "num_folds": 3, "seed": 0, "num_clips": [20, 12, 8], "num_groups": 10,
    }  # fmt: skip
    told = "Student t over folds, corrected for training clips that they share"
    assert results["interval"]["method"] == told
    full = results["variants"]["full"]
    values = np.mean([hits_of(seed, 0.8) for seed in (0, 1)], axis=0)
    assert full["top1"] == pytest.approx(over_folds(values, np.full(40, 1 / 40), FOLDS))
    by_class = np.mean([class_wise_accuracy(hits_of(s, 0.8), LABELS, 3) for s in (0, 1)])
    assert full["class_wise"]["mean"] == pytest.approx(by_class)
    assert full["by_clip"]["num_groups"] == 10
    assert full["by_clip"]["low"] < full["top1"]["mean"] < full["by_clip"]["high"]


def test_differences_are_paired_over_folds_and_groups(results):
    versus = results["variants"]["worse"]["versus_reference"]
    pairs = [hits_of(seed, 0.5).astype(float) - hits_of(seed, 0.8) for seed in (0, 1)]
    expected = paired_over_folds(np.mean(pairs, axis=0), np.full(40, 1 / 40), FOLDS)
    assert {name: versus[name] for name in expected} == pytest.approx(expected)
    assert versus["num_pairs"] == 3 and versus["by_clip"]["num_groups"] == 10
    assert versus["by_clip"]["difference"] == versus["difference"]
    assert versus["class_wise"]["difference"] == pytest.approx(
        np.mean(
            [
                class_wise_accuracy(hits_of(s, 0.5), LABELS, 3)
                - class_wise_accuracy(hits_of(s, 0.8), LABELS, 3)
                for s in (0, 1)
            ]
        )
    )
    one = results["variants"]["one"]["versus_reference"]
    single = hits_of(1, 0.6).mean() - hits_of(1, 0.8).mean()
    assert one["difference"] == pytest.approx(single), "on the seed that both have"
    assert results["variants"]["none"]["top1"] is None


def test_a_run_says_what_each_fold_did(results):
    (run, _) = results["variants"]["full"]["runs"]
    assert [part["fold"] for part in run["folds"]] == [0, 1, 2]
    assert [part["num_clips"] for part in run["folds"]] == [20, 12, 8]
    assert sum(p["top1"] * p["num_clips"] for p in run["folds"]) / 40 == pytest.approx(run["top1"])
    assert (run["epochs"], run["train_seconds"], run["heldout_accuracy"]) == (6, 12.0, 0.5)
    assert run["layers"] == [{"entropy": 0.0, "dead": 2.0}], "means: neurons of heads are their own"
    assert run["folds"][2]["predictions"] == "runs/0-2/predictions.npz"


def test_rows_of_the_csv(results):
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [(row["seed"], row["fold"]) for row in rows[:5]] == [
        ("0", "all"), ("0", "0"), ("0", "1"), ("0", "2"), ("1", "all"),
    ]  # fmt: skip
    assert len(rows) == 4 * 5 and float(rows[0]["top1"]) == hits_of(0, 0.8).mean()


def test_the_table_says_folds(results):
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(ablation_table(results))
    text = " ".join(console.export_text().split())
    assert "Ablation over 3 folds of whole groups (percent of all clips; 2 seeds, 95 %" in text
    assert "intervals over folds)" in text and "paired t over folds" in text
    assert "40 clips of 10 groups, each answered by the fold that held it out" in text


def test_a_clip_that_two_folds_answer_is_refused():
    part = run(0, 0.5).folds[0].result.predictions
    with pytest.raises(DataError, match="appears twice"):
        join_folds([part, part])
