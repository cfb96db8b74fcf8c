"""`search` on a store whose test maps can't be read: held-out clips of train decide everything."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from ruamel.yaml import YAML

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import load_settings
from stages import search
from tests.pipeline import ROOT, command_of, params_of, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, damage_clips, make_ready

SPACE = ["--space=train.learning_rate=0.001:0.1:log", "--space=head.width=2,4"]
TRIALS = QUICK | {"search__num_trials": 4, "search__startup_trials": 1}
WIDE = {"head__width": "null"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features ready, every map of the test split damaged; nothing is written by refused runs."""
    folder = tmp_path_factory.mktemp("search")
    damage_clips(make_ready(folder), 64)
    return folder


@pytest.mark.parametrize(
    ("space", "settings", "told"),
    [
        ([], {"train__heldout_fraction": 0.0}, "never by the test split; set it, such as"),
        (["dataset.flip=a,b"], {}, "dataset.flip can't be searched; expected a setting of head"),
        (["train.heldout_fraction=0.1:0.2"], {}, "train.heldout_fraction can't be searched"),
        (["train.data_seed=1:5"], {}, "train.data_seed can't be searched"),
        (["train.devices=1,2"], {}, "train.devices can't be searched"),
        (["head=1,2"], {}, "head can't be searched"),
        (["train.lerning_rate=1:2"], {}, "did you mean train.learning_rate?"),
        (["train.momentum=0.5:1.5"], {}, "train.momentum: found 1.5"),
        (["head.bottleneck=4,8"], WIDE, "bottleneck=8 is above in_channels=6"),
        (["train.batch_size=8,32"], {"train__heldout_fraction": 0.01}, "holds out too few of 64"),
        (["head.num_layers=0:2"], {}, "udl.enabled is true and head.num_layers 0"),
        (["train.momentum=0.5:0.6"] * 2, {}, "expected each key once"),
        ([], {"train__devices": 2}, "a search trains one head in one process"),
        ([], {"train__num_epochs": 0}, "there is no epoch to choose settings by"),
    ],
)
def test_what_cannot_be_searched_is_told_at_once(folder, space, settings, told, monkeypatch):
    monkeypatch.chdir(folder)
    given = TRIALS | settings | {"search__space": json.dumps(space or ["train.momentum=0.5:0.6"])}
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in given.items()]
    with pytest.raises(SettingsError) as error:
        search.run(load_settings(params_of(), overrides))
    assert told in str(error.value)
    assert not (folder / "outputs" / "search").exists()


def test_faults_end_with_status_2(folder):
    given = TRIALS | WIDE
    told = tell_plainly(run_cli(folder, "search", "--space=head.bottleneck=4,8", **given))
    assert "bottleneck=8 is above in_channels=6" in told


def test_few_clips_are_trained_on_where_they_can_be_judged_by(tmp_path):
    make_ready(tmp_path, num_train=12, num_test=20)
    few = {"train__batch_size": 32, "train__heldout_fraction": 0.4, "search__num_trials": 2}
    run = run_cli(tmp_path, "search", SPACE[0], **TRIALS | few)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("two batches of train.batch_size 32: batches of ") == 1
    record = json.loads((tmp_path / "outputs/search/trials.json").read_text())
    assert [trial["state"] for trial in record["trials"]].count("refused") == 0
    assert record["adapted"][0] in run.stderr and len(record["adapted"]) == 1


def finished(folder):
    record = json.loads((folder / "outputs/search/trials.json").read_text())
    return [
        {k: v for k, v in t.items() if k not in ("seconds", "number")} for t in record["trials"]
    ]


@pytest.mark.long
def test_a_killed_search_goes_on_to_the_same_best_settings(folder, tmp_path_factory):
    run = run_cli(folder, "search", *SPACE, **TRIALS)
    assert run.returncode == 0, run.stderr
    assert "Trials by held-out accuracy" in run.stdout
    assert "trial 0 has the settings as they are" in run.stdout
    trials = finished(folder)
    assert len(trials) == 4
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: (-trial["accuracy"], trial["loss"]))
    params = YAML(typ="safe").load((folder / "outputs/search/best_params.yaml").read_text())
    assert params["train"]["learning_rate"] == best["values"]["train.learning_rate"]
    assert params["head"]["width"] == best["values"]["head.width"]

    other = tmp_path_factory.mktemp("killed")
    damage_clips(make_ready(other), 64)
    for _ in range(2):
        process = subprocess.Popen(
            command_of("search", *SPACE, **TRIALS),
            cwd=other,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        while not process.stderr.readline().startswith("trial "):
            assert process.poll() is None
        process.kill()
        process.wait()
    again = run_cli(other, "search", *SPACE, **TRIALS)
    assert again.returncode == 0 and " of 4 trials are done" in again.stderr
    assert finished(other) == trials

    # The file is ready for --params: the same head, trained alone.
    command = ["train-head", "--params", "outputs/search/best_params.yaml"]
    alone = subprocess.run(
        [*command_of("show")[:2], *command], cwd=other, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    history = json.loads((other / "outputs/heads/dsts/history.json").read_text())["epochs"]
    assert max(entry["heldout_accuracy"] for entry in history) == best["accuracy"]


@pytest.mark.slow
def test_a_budget_stops_between_epochs_and_the_same_command_goes_on(tmp_path):
    make_ready(tmp_path)
    trials = QUICK | {"search__num_trials": 2}
    first = run_cli(tmp_path, "search", *SPACE, "--minutes", "0.0001", **trials)
    assert first.returncode == 0, first.stderr
    assert "2 trials left, about " in first.stderr
    assert "no time for another epoch (search.minutes is 0.0001): 0 of 2 trials" in first.stderr
    (saved,) = (tmp_path / "outputs/search/checkpoints").glob("*/state.json")
    assert json.loads(saved.read_text())["values"]["epoch"] == 1
    second = run_cli(tmp_path, "search", *SPACE, "--minutes", "10", **trials)
    assert second.returncode == 0, second.stderr
    assert "goes on from" in second.stderr and "0 trials left" in second.stderr
    assert [trial["num_epochs"] for trial in finished(tmp_path)] == [2, 2]
