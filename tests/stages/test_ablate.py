"""The command: variants are added, nothing is trained twice, kills change nothing."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch

from dsts_pipeline.head import load_head
from tests.extract.processes import descendants_of, wait_until_gone
from tests.pipeline import ROOT, command_of, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, damage_clips, make_ready

GRID = "--grid", "head.num_neurons=2,3", "--grid", "udl.enabled=true,false"
SETTINGS = QUICK | {"evaluate__num_bootstrap": 100}


pytestmark = pytest.mark.slow


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    make_ready(tmp_path)
    return tmp_path


def ablate(folder: Path, *arguments: str, **settings: object):
    run = run_cli(folder, "ablate", *arguments, **SETTINGS | settings)
    assert run.returncode == 0, run.stderr
    results = json.loads((folder / "outputs" / "ablation" / "results.json").read_text())
    return run, results


def figures(results, *, seeds=(0, 1)):
    return {
        (name, run["seed"]): {k: v for k, v in run.items() if k != "train_seconds"}
        for name, variant in results["variants"].items()
        for run in variant["runs"]
        if run["seed"] in seeds
    }


def heads(folder: Path):
    return {p.name: p / "head.json" for p in (folder / "outputs/ablation/runs").iterdir()}


@pytest.mark.long
def test_variants_are_added_and_finished_ones_are_not_retrained(ready):
    run, first = ablate(ready, *GRID[:2], "--seeds", "2")
    assert "4 trainings, 0 of them finished before" in run.stderr, "full and N = 2 are one"
    written = {path: path.stat().st_mtime_ns for path in heads(ready).values()}
    assert len(written) == 4
    run, second = ablate(ready, *GRID, "--seeds", "3")
    assert "12 trainings, 4 of them finished before" in run.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    old = figures(first)
    new = figures(second)
    assert old["full", 1] == new["full", 1]
    assert old["head.num_neurons=3", 0] == new["head.num_neurons=3 udl.enabled=true", 0]
    assert second["seeds"] == [0, 1, 2] and len(second["variants"]["full"]["runs"]) == 3
    rows = list(csv.DictReader((ready / "outputs/ablation/results.csv").open()))
    assert len(rows) == 5 * 3
    kept = ready / "outputs/ablation" / second["variants"]["full"]["runs"][0]["predictions"]
    assert kept.exists()
    run, again = ablate(ready, *GRID, "--seeds", "3")
    assert "12 trainings, 12 of them finished before" in run.stderr and again == second
    assert not (ready / "outputs/ablation/checkpoints").exists()


def test_a_variant_is_what_train_head_gives(ready):
    _, results = ablate(ready, "--grid", "head.num_neurons=2,3", "--seeds", "2")
    alone = {"seed": 1, "train__data_seed": 0, "head__num_neurons": 3}
    assert run_cli(ready, "train-head", **SETTINGS | alone).returncode == 0
    head, _ = load_head(ready / "outputs" / "heads" / "dsts")
    run = results["variants"]["head.num_neurons=3"]["runs"][1]
    folder = (ready / "outputs/ablation" / run["predictions"]).parent
    own, extra = load_head(folder)
    assert extra["seed"] == 1 and extra["variant"] == "head.num_neurons=3"
    for name, value in head.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=0, atol=0)


def test_few_clips_are_trained_on_as_train_head_does(tmp_path):
    make_ready(tmp_path, num_train=12, num_test=20)
    few = {"train__batch_size": 32, "train__heldout_fraction": 0.1}
    given = "--set", "ablate.variants=[{name: probe, kind: linear_probe}]", "--seeds", "1"
    run, results = ablate(tmp_path, *given, **few)
    assert run.stderr.count("two batches of train.batch_size 32: batches of 6 are taken") == 1
    assert run_cli(tmp_path, "train-head", **SETTINGS | few).returncode == 0
    for name, alone in {"full": "dsts", "probe": "linear_probe"}.items():
        head, of_alone = load_head(tmp_path / "outputs/heads" / alone)
        (found,) = results["variants"][name]["runs"]
        own, extra = load_head((tmp_path / "outputs/ablation" / found["predictions"]).parent)
        assert [extra["adapted"]] == [of_alone["adapted"]] == results["adapted"]
        for part, value in head.state_dict().items():
            torch.testing.assert_close(own.state_dict()[part], value, rtol=0, atol=0)


def test_a_search_without_heldout_clips_is_told(tmp_path):
    make_ready(tmp_path, num_train=12, num_test=20)
    few = SETTINGS | {"train__batch_size": 32, "train__heldout_fraction": 0.1}
    search = "--search", "train.learning_rate=0.1,0.2"
    told = tell_plainly(run_cli(tmp_path, "ablate", "--grid", "head.num_neurons=3", *search, **few))
    assert "holds out too few of 12 training clips to choose settings by" in told
    assert "expected one of each of 4 classes: set it to 0.34, which holds out one of the 3" in told


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_budget_stops_between_epochs_and_the_same_command_goes_on(ready, jobs):
    given = "--grid", "head.num_neurons=3", "--seeds", "1", "--jobs", str(jobs)
    first = run_cli(ready, "ablate", *given, "--minutes", "0.0001", **SETTINGS)
    assert first.returncode == 1 and not (ready / "outputs/ablation/results.json").exists()
    jobs_told = " by 2 processes" if jobs == 2 else ""
    (estimate,) = (line for line in first.stderr.splitlines() if line.startswith("about "))
    assert f"of training{jobs_told}: " in estimate and "full 1 x " in estimate
    assert "no time for another epoch" in first.stderr
    assert "0 of 2 trainings are finished, the others saved, " in first.stderr
    states = list((ready / "outputs/ablation/checkpoints").glob("*/state.json"))
    saved = [json.loads(path.read_text())["values"] for path in states]
    assert [(v["epoch"], v["sampler"]["batches_done"]) for v in saved] == [(1, 0)] * 2
    run, found = ablate(ready, *given, "--minutes", "10")  # two epochs in all
    assert [len(variant["runs"]) for variant in found["variants"].values()] == [1, 1]


def rating(run):
    """What chooses: the accuracy on held-out clips, of equals the lower loss."""
    return run["heldout_accuracy"], -run["heldout_loss"]


def test_a_search_keeps_what_heldout_clips_prefer(ready):
    rates = 0.001, 0.05
    search = "--search", "train.learning_rate=0.001,0.05"
    run, found = ablate(ready, "--grid", "head.num_neurons=3", *search, "--seeds", "2")
    assert "8 trainings, 0 of them finished before" in run.stderr
    _, each = ablate(ready, "--grid", f"train.learning_rate={rates[0]},{rates[1]}", "--seeds", "2")
    chosen = set()
    for seed in (0, 1):
        of_rate = {
            rate: each["variants"][f"train.learning_rate={rate}"]["runs"][seed] for rate in rates
        }
        best = max(rates, key=lambda rate: rating(of_rate[rate]))
        kept = found["variants"]["full"]["runs"][seed]
        assert kept["chosen"] == {"train.learning_rate": best}
        assert kept["tried"] == [
            {
                "settings": {"train.learning_rate": rate},
                "accuracy": of_rate[rate]["heldout_accuracy"],
            }
            for rate in rates
        ]
        assert kept["predictions"] == of_rate[best]["predictions"]
        chosen |= {kept["predictions"]}
    answered = {p.parent.name for p in (ready / "outputs/ablation/runs").glob("*/predictions*")}
    assert {Path(path).parent.name for path in chosen} <= answered


def test_the_first_seeds_choice_holds_for_the_others(ready):
    search = "--search", "train.learning_rate=0.001,0.05", "--set", "ablate.search_seeds=first"
    run, found = ablate(ready, "--grid", "head.num_neurons=3", *search, "--seeds", "3")
    assert "4 trainings, 0 of them finished before" in run.stderr  # two variants, one seed
    assert "8 trainings, 4 of them finished before" in run.stderr  # and two seeds of each choice
    trained = [path.parent for path in (ready / "outputs/ablation/runs").glob("*/head.json")]
    assert len(trained) == 8
    _, each = ablate(ready, "--grid", "head.num_neurons=3", *search[:2], "--seeds", "3")
    for name, variant in found["variants"].items():
        runs = variant["runs"]
        assert [run["chosen"] for run in runs] == [runs[0]["chosen"]] * 3
        assert [len(run.get("tried", [])) for run in runs] == [2, 0, 0]
        assert runs[0]["predictions"] == each["variants"][name]["runs"][0]["predictions"]


def test_seeds_that_search_together_make_one_choice_by_their_mean(ready):
    search = "--search", "train.learning_rate=0.001,0.05", "--set", "ablate.search_seeds=together"
    _, found = ablate(ready, "--grid", "head.num_neurons=3", *search, "--seeds", "3")
    rates = [f"train.learning_rate={rate}" for rate in (0.001, 0.05)]
    runs_of = {rate: [] for rate in rates}
    for seed in range(3):  # each with held-out clips of its own
        own = {"seed": seed, "train__data_seed": seed}
        grid = "--grid", "train.learning_rate=0.001,0.05"
        _, alone = ablate(ready, *grid, "--seeds", "1", **own)
        for rate in rates:
            runs_of[rate] += alone["variants"][rate]["runs"]
    held = {
        rate: tuple(fmean(figures) for figures in zip(*map(rating, runs), strict=True))
        for rate, runs in runs_of.items()
    }
    best = max(rates, key=lambda rate: held[rate])
    kept = found["variants"]["full"]["runs"]
    assert [f"train.learning_rate={run['chosen']['train.learning_rate']}" for run in kept] == (
        [best] * 3
    )
    names = [run["predictions"] for run in kept]  # named by all that decides a run
    assert names == [run["predictions"] for run in runs_of[best]] and len(set(names)) == 3


def test_of_seeds_that_search_together_the_first_choose_for_the_others(ready):
    search = "--search", "train.learning_rate=0.001,0.05", "--set", "ablate.search_seeds=together"
    grid = "--grid", "head.num_neurons=3"
    first = "--set", "ablate.num_search_seeds=2"
    run, found = ablate(ready, *grid, *search, *first, "--seeds", "4")
    assert "8 trainings, 0 of them finished before" in run.stderr  # two variants, seeds and rates
    assert "12 trainings, 8 of them finished before" in run.stderr  # and two seeds of each choice
    _, both = ablate(ready, *grid, *search, "--seeds", "2")
    _, every = ablate(
        ready, "--grid", "train.learning_rate=0.001,0.05", *search[2:], "--seeds", "4"
    )
    for name, variant in found["variants"].items():
        runs = variant["runs"]
        assert runs[:2] == both["variants"][name]["runs"]
        assert [one["chosen"] for one in runs] == [runs[0]["chosen"]] * 4
        assert [len(one.get("tried", [])) for one in runs] == [2, 2, 0, 0]
    rate = found["variants"]["full"]["runs"][0]["chosen"]["train.learning_rate"]
    alone = every["variants"][f"train.learning_rate={rate}"]["runs"]
    names = [one["predictions"] for one in found["variants"]["full"]["runs"]]
    assert names == [one["predictions"] for one in alone]  # each with held-out clips of its own


def test_a_choice_by_the_test_split_takes_the_best_there_and_is_marked(ready):
    search = "--search", "train.learning_rate=0.001,0.05", "--set", "ablate.choose_by=evaluated"
    run, found = ablate(ready, "--grid", "head.num_neurons=3", *search, "--seeds", "1")
    assert found["chosen_by"] == "the test split itself"
    assert "Chosen on test: each figure is the best of several" in " ".join(run.stdout.split())
    _, each = ablate(ready, "--grid", "train.learning_rate=0.001,0.05", "--seeds", "1")
    rates = [f"train.learning_rate={rate}" for rate in (0.001, 0.05)]
    best = max(rates, key=lambda rate: each["variants"][rate]["runs"][0]["top1"])
    kept = found["variants"]["full"]["runs"][0]
    assert kept["predictions"] == each["variants"][best]["runs"][0]["predictions"]
    _, none = ablate(
        ready, "--grid", "head.num_neurons=3", *search, "--seeds", "1", train__heldout_fraction=0
    )
    assert none["variants"]["full"]["runs"][0]["heldout_accuracy"] is None


def test_a_variants_own_setting_is_not_searched(ready):
    listed = "[{name: slow, settings: {train.learning_rate: 0.001}}]"
    given = "--set", f"ablate.variants={listed}", "--search", "train.learning_rate=0.002,0.05"
    run, found = ablate(ready, *given, "--seeds", "1")
    assert "3 trainings" in run.stderr
    assert "chosen" not in found["variants"]["slow"]["runs"][0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--set", "ablate.num_search_seeds=2"],
            "ablate.num_search_seeds is of seeds that search together",
        ),
        (["--search", "train.learning_rate"], "ablate.search train.learning_rate: expected KEY="),
        (["--search", "store.dtype=int8"], "store.dtype is common to all variants"),
        (
            ["--search", "train.learning_rate=0.1,0.2", "--set", "train.heldout_fraction=0"],
            "ablate.search is given and train.heldout_fraction 0",
        ),
        (
            ["--search", "train.heldout_fraction=0.1,0.3", "--set", "train.heldout_fraction=0.2"],
            "train.heldout_fraction decides which clips the values are judged by",
        ),
    ],
)
def test_a_search_that_cannot_be_is_told(ready, arguments, told):
    settings = {k: v for k, v in SETTINGS.items() if k != "train__heldout_fraction"}
    run = run_cli(ready, "ablate", "--grid", "head.num_neurons=3", *arguments, **settings)
    assert told in tell_plainly(run)


@pytest.mark.parametrize("seeds", ["each", "first", "together"])
def test_values_of_a_search_that_diverge_are_told_and_others_are_chosen(ready, seeds):
    search = "--search", "train.learning_rate=1e35,0.01", "--set", f"ablate.search_seeds={seeds}"
    run, found = ablate(
        ready, "--grid", "head.num_neurons=3", *search, "--seeds", "2", train__optimizer="sgd"
    )
    assert "of the trainings diverged: " in run.stderr and "chose among the others" in run.stderr
    for variant in found["variants"].values():
        chosen = [one["chosen"] for one in variant["runs"]]
        assert chosen == [{"train.learning_rate": 0.01}] * 2
    given = SETTINGS | {"train__optimizer": "sgd"}
    alone = "ablate", "--grid", "train.learning_rate=1e35,0.01", "--seeds", "1"
    assert "1 of the trainings diverged" in tell_plainly(run_cli(ready, *alone, **given))


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_kills_change_nothing(ready, tmp_path_factory, jobs):
    """SIGKILL to all processes at random moments, then once SIGTERM, then to the end."""
    other = tmp_path_factory.mktemp("undisturbed")
    make_ready(other)
    _, expected = ablate(other, *GRID, "--seeds", "2")
    every = {"train__checkpoint_every_batches": 1}
    command = command_of("ablate", *GRID, "--seeds=2", f"--jobs={jobs}", **SETTINGS, **every)
    moments = random.Random(os.urandom(8))
    statuses, resumed = [], False
    for number in range(4):
        begun = time.time()
        process = subprocess.Popen(
            command,
            cwd=ready,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        checkpoints = ready / "outputs" / "ablation" / "checkpoints"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            saved = [path.stat().st_mtime for path in checkpoints.glob("*/state.json")]
            if any(when > begun for when in saved):  # it trains, and has saved what it did
                resumed = True
                break
            time.sleep(0.02)
        time.sleep(moments.random())
        if number < 3:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.terminate()
        process.communicate(timeout=120)
        statuses.append(process.returncode)
    assert resumed and set(statuses[:3]) <= {-signal.SIGKILL, 0} and statuses[3] in (99, 0)
    _, found = ablate(ready, *GRID, "--seeds", "2", "--jobs", str(jobs))
    assert figures(found) == figures(expected)


@pytest.mark.long
def test_processes_of_a_killed_ablation_leave(ready):
    """Its parent alone is killed: they save what they have and end, and hold no output open."""
    process = subprocess.Popen(
        command_of("ablate", *GRID, "--seeds=4", "--jobs=2", **SETTINGS),
        cwd=ready,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    runs, deadline = ready / "outputs" / "ablation" / "runs", time.monotonic() + 120
    while not list(runs.glob("*/head.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    below = descendants_of(process.pid)
    assert len(below) >= 2
    process.kill()
    process.communicate(timeout=10)
    assert wait_until_gone(below, 45)


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ((), {}, "python cli.py ablate --experiment paper_tables"),
        (("--grid", "head.num_neuron=4"), {}, "did you mean head.num_neurons?"),
        (("--grid", "head.num_layers=0,1"), {}, "variant head.num_layers=0: udl.enabled is true"),
        (
            ("--grid", "head.bottleneck=4,7"),
            {"head__width": "null"},
            "variant head.bottleneck=7: bottleneck=7 is above in_channels=6",
        ),
        (
            ("--grid", "head.width=4"),
            {"evaluate__split": "val"},
            "no map of split 'val'; found: test",
        ),
        (
            ("--grid", "head.width=4"),
            {"train__devices": 2},
            "set train.devices to 1 and ablate.jobs",
        ),
        (("--experiment", "none"), {}, "--experiment none: configs/experiment/none.yaml"),
    ],
)
def test_wrong_combinations_are_told_before_a_map_is_read(tmp_path, arguments, settings, expected):
    damage_clips(make_ready(tmp_path), 16)
    told = tell_plainly(run_cli(tmp_path, "ablate", *arguments, **SETTINGS | settings))
    assert expected in told
    assert not (tmp_path / "outputs" / "ablation").exists()


def test_a_classifier_that_does_not_fit_is_told(tmp_path):
    damage_clips(make_ready(tmp_path), 16)
    variants = '[{"name": "baseline", "kind": "baseline"}]'
    told = tell_plainly(run_cli(tmp_path, "ablate", **SETTINGS, ablate__variants=variants))
    assert "variant baseline is the backbone's own classifier, and no classifier of this" in told
    assert "6 channels and 4 classes" in told


def test_a_damaged_run_is_told(ready):
    ablate(ready, "--grid", "head.num_neurons=3", "--seeds", "1")
    folder = next(path.parent for path in heads(ready).values())
    content = bytearray((folder / "head.safetensors").read_bytes())
    del content[len(content) // 2 :]
    (folder / "head.safetensors").write_bytes(content)
    arguments = "ablate", "--grid", "head.num_neurons=3", "--seeds", "1"
    told = tell_plainly(run_cli(ready, *arguments, **SETTINGS))
    assert f"or delete outputs/ablation/runs/{folder.name}" in told
