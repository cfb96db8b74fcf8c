"""A study finds the best of what it tries, prunes the worst, and survives being killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import MissingExtraError, SettingsError
from dsts_pipeline.base.settings import SearchSettings
from dsts_pipeline.learn.search import (
    Dimension,
    Study,
    TrialRefused,
    best_of,
    import_optuna,
    locked_study,
)
from tests.learn.search.search_process import PRESENT, search

SCRIPT = Path(__file__).with_name("search_process.py")
ROOT = Path(__file__).resolve().parents[3]
X = Dimension("x", low=-4.0, high=4.0)


def study_in(folder, *, present=3.0, name="s", dimensions=(X,), **early):
    how = SearchSettings(**{"pruner": "none"} | early)
    return Study(folder, name, dimensions, present={"x": present}, seed=1, how=how)


def parabola(number, values, on_epoch):
    """An accuracy that rises to its end over three epochs; -3 can't be trained."""
    if values["x"] < -3:
        raise TrialRefused("x is too small")
    for epoch in range(3):
        missing = (values["x"] - 1) ** 2 + 1 / (epoch + 1)
        on_epoch({"epoch": epoch, "heldout_loss": 0.5, "heldout_accuracy": 1 - missing / 20})


def missing(trial):
    return 20 * (1 - trial.accuracy)


def sure_and_wrong(number, values, on_epoch):
    """Grows more accurate while its loss rises, then equally accurate and less sure."""
    for epoch, (accuracy, loss) in enumerate([(0.4, 1.0), (0.6, 2.0), (0.6, 1.8)]):
        on_epoch({"epoch": epoch, "heldout_loss": loss, "heldout_accuracy": accuracy})


def run(study, num_trials):
    return [study.run_trial(parabola) for _ in range(num_trials)]


def test_begins_with_the_present_values_and_gets_better(tmp_path):
    trials = run(study_in(tmp_path), 20)
    assert trials[0].values == {"x": 3.0} and missing(trials[0]) == pytest.approx(4 + 1 / 3)
    best = best_of(trials)
    assert missing(best) < 1 / 3 + 0.1 and abs(best.values["x"] - 1) < 0.32
    refused = [trial for trial in trials if trial.values["x"] < -3]
    told = [(trial.state, trial.accuracy, trial.reason) for trial in refused]
    assert told == [("refused", None, "x is too small")] * len(refused)
    assert all(trial.state == "complete" for trial in trials if trial not in refused)


def test_a_trial_is_judged_as_training_judges_its_epochs(tmp_path):
    trial = study_in(tmp_path).run_trial(sure_and_wrong)
    assert (trial.accuracy, trial.loss) == (0.6, 1.8)
    assert "held-out accuracy 60.0 %, loss 1.8000" in trial.told
    likelier = replace(trial, number=1, loss=1.7)
    assert best_of([trial, likelier, replace(trial, number=2, accuracy=0.5, loss=0.1)]) == likelier


def test_present_values_outside_of_the_space_are_not_tried(tmp_path):
    (trial,) = run(study_in(tmp_path, present=9.0), 1)
    assert -4 <= trial.values["x"] <= 4


def test_the_median_pruner_ends_what_is_worse(tmp_path):
    early = {"pruner": "median", "startup_trials": 2, "warmup_epochs": 1}
    trials = run(study_in(tmp_path, present=1.0, **early), 12)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned and all(trial.num_epochs == 2 for trial in pruned)
    assert {trial.number for trial in pruned}.isdisjoint({0, 1})
    assert max(trial.accuracy for trial in pruned) < best_of(trials).accuracy


def test_successive_halving_ends_trials_too(tmp_path):
    early = {"pruner": "successive_halving", "startup_trials": 2}
    trials = run(study_in(tmp_path, present=1.0, **early), 12)
    assert any(trial.state == "pruned" and trial.num_epochs < 3 for trial in trials)


def test_a_study_goes_on_as_if_it_had_never_ended(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    at_once = [trial.values for trial in run(study_in(tmp_path / "one"), 9)]
    for count in (2, 1, 6):
        run(study_in(tmp_path / "two"), count)
    again = study_in(tmp_path / "two").finished
    assert [trial.values for trial in again] == at_once
    assert not study_in(tmp_path / "two", name="another").finished


def test_a_trial_that_broke_is_repeated_with_its_values(tmp_path):
    study = study_in(tmp_path)
    run(study, 2)
    broken = []

    def breaks(number, values, on_epoch):
        broken.append(values)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run_trial(breaks)
    study = study_in(tmp_path)
    assert len(study.finished) == 2
    (trial,) = run(study, 1)
    assert trial.values == broken[0] and len(study.finished) == 3


def test_one_search_at_a_time(tmp_path):
    with locked_study(tmp_path), pytest.raises(SettingsError, match="another search is at work"):
        with locked_study(tmp_path):
            pass


def test_a_missing_optuna_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'not installed: pip install .*\[search\]"'):
        import_optuna()


# ---- killed -----------------------------------------------------------------------------------


def start(folder, num_trials):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(num_trials)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.long
def test_killed_searches_find_what_an_unbroken_one_finds(tmp_path):
    unbroken = search(tmp_path / "unbroken", 8)
    assert unbroken[0]["values"] == PRESENT
    assert {record["state"] for record in unbroken} == {"complete", "pruned"}
    for num_lines in (3, 8):  # at the end of the first trial, and within a later one
        process = start(tmp_path / "killed", 8)
        for _ in range(num_lines):
            assert process.stdout.readline().startswith("trial ")
        process.kill()
        assert process.wait() == -9
    lines = start(tmp_path / "killed", 8).communicate(timeout=200)[0].splitlines()
    assert json.loads(lines[-1]) == unbroken
