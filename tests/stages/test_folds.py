"""Groups and folds in commands: what is held out and tested, warnings, errors, kills."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.errors import SettingsError, UserError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.metrics import Predictions
from stages import ablate as ablation
from stages import search, train_head
from tests.pipeline import ROOT, command_of, params_of, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, damage_clips, make_ready

NUM_CLIPS = 96  # 64 of train, 32 of test
PLAYERS = [f"player {clip // 12}" for clip in range(NUM_CLIPS)]  # the sixth is in both splits
APART = ["of test" if clip >= 64 else f"player {clip // 4}" for clip in range(NUM_CLIPS)]
SETTINGS = QUICK | {"evaluate__num_bootstrap": 100, "dataset__num_folds": 4}
GRID = "--grid", "udl.enabled=false"
FOLDS = "--folds", "--seeds=2", *GRID


def ablate(folder: Path, *arguments: str, **settings: object):
    run = run_cli(folder, "ablate", *arguments, **SETTINGS | settings)
    assert run.returncode == 0, run.stderr
    return run, json.loads((folder / "outputs/ablation/results.json").read_text())


def without_times(results):
    text = json.dumps(results["variants"])
    found = json.loads(text)
    for variant in found.values():
        for run in variant["runs"]:
            for part in (run, *run["folds"]):
                del part["train_seconds"]
    return found


# ---- ablate --folds ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which two variants were cross-validated with two seeds."""
    folder = tmp_path_factory.mktemp("folds")
    make_ready(folder, groups=PLAYERS)
    run, results = ablate(folder, *FOLDS)
    return folder, run, results


@pytest.mark.slow
def test_every_clip_is_answered_once_a_seed_by_the_fold_that_held_it_out(done):
    folder, run, results = done
    assert results["folds"]["num_clips"] == [24] * 4 and results["num_clips"] == NUM_CLIPS
    assert results["folds"]["num_groups"] == 8
    group_of = dict(zip((f"clip-{n}" for n in range(NUM_CLIPS)), PLAYERS, strict=True))
    for variant in results["variants"].values():
        assert len(variant["runs"]) == 2
        for described in variant["runs"]:
            answered = []
            for part in described["folds"]:
                path = folder / "outputs/ablation" / part["predictions"]
                answers = Predictions.load(path)
                assert part["top1"] == answers.hits().mean()
                answered.append(set(answers.clip_ids))
                extra = read_json(path.parent / "head.json")["extra"]
                assert extra["fold"]["fold"] == part["fold"]
            assert len(set.union(*answered)) == sum(map(len, answered)) == NUM_CLIPS
            groups = [{group_of[clip] for clip in clips} for clips in answered]
            assert sum(map(len, groups)) == 8, "no player is in two folds"
            hits = sum(part["top1"] * part["num_clips"] for part in described["folds"])
            assert described["top1"] == pytest.approx(hits / NUM_CLIPS)
    assert "Ablation over 4 folds of whole groups" in run.stdout
    assert "warning" not in run.stderr, "folds share no groups"
    rows = list(csv.DictReader((folder / "outputs/ablation/results.csv").open()))
    assert len(rows) == 2 * 2 * 5 and {row["fold"] for row in rows} == {"all", *"0123"}


@pytest.mark.slow
def test_finished_folds_are_never_trained_again(done):
    folder, run, results = done
    assert run.stderr.count("4 trainings, 0 of them finished before") == 4
    run, again = ablate(folder, *FOLDS)
    assert run.stderr.count("4 trainings, 4 of them finished before") == 4
    assert without_times(again) == without_times(results)
    run, more = ablate(folder, *FOLDS[:1], "--seeds=3", *GRID)
    assert run.stderr.count("6 trainings, 4 of them finished before") == 4
    assert more["variants"]["full"]["runs"][:2] == results["variants"]["full"]["runs"]
    run, other = ablate(folder, *FOLDS, dataset__heldout_seed=1)
    assert run.stderr.count("4 trainings, 0 of them finished before") == 4, "other folds"
    # Without folds the splits are the store's own, and so are its runs.
    run, plain = ablate(folder, "--seeds=2", *GRID)
    assert "4 trainings, 0 of them finished before" in run.stderr and "folds" not in plain
    assert "warning: 8 of 32 test clips are of groups that train clips are of" in run.stderr


@pytest.mark.slow
def test_a_fold_of_the_ablation_is_what_train_head_gives(done):
    folder, _, results = done
    alone = {"dataset__fold": 2, "seed": 0}
    assert run_cli(folder, "train-head", **SETTINGS | alone).returncode == 0
    assert run_cli(folder, "evaluate", **SETTINGS | alone).returncode == 0
    metrics = read_json(folder / "outputs/evaluation/metrics.json")
    part = results["variants"]["full"]["runs"][0]["folds"][2]
    assert metrics["heads"]["dsts"]["top1"] == part["top1"] and metrics["evaluated"] == 24
    assert metrics["provenance"]["settings"]["fold"]["fold"] == 2
    told = tell_plainly(run_cli(folder, "evaluate", **SETTINGS))
    assert "trained for fold 2 of 4" in told and "the store's own test split is asked for" in told
    told = tell_plainly(run_cli(folder, "evaluate", **SETTINGS | {"dataset__fold": 1}))
    assert "and fold 1 of 4" in told and "whose clips it may have learnt" in told
    page = run_cli(folder, "report", **SETTINGS | alone)
    assert page.returncode == 0, page.stderr


@pytest.mark.long
def test_jobs_share_out_a_fold(done, tmp_path):
    _, _, results = done
    make_ready(tmp_path, groups=PLAYERS)
    _, shared = ablate(tmp_path, *FOLDS, "--jobs=2")
    assert without_times(shared) == without_times(results)


@pytest.mark.long
def test_kills_change_nothing(done, tmp_path):
    _, _, expected = done
    make_ready(tmp_path, groups=PLAYERS)
    every = {"train__checkpoint_every_batches": 1}
    command = command_of("ablate", *FOLDS, **SETTINGS, **every)
    chance = random.Random(0)
    runs = tmp_path / "outputs" / "ablation" / "runs"
    for _ in range(3):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        before = len(list(runs.glob("*/head.json")))
        while process.poll() is None and len(list(runs.glob("*/head.json"))) < before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3 * chance.random())
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 0)
    run, found = ablate(tmp_path, *FOLDS, **every)
    kept = re.findall(r"fold \d of 4: 4 trainings, (\d) of them finished before", run.stderr)
    assert len(kept) == 4 and sum(map(int, kept)) >= 9
    assert without_times(found) == without_times(expected)


# ---- what is held out, and warnings --------------------------------------------------------------


@pytest.mark.slow
def test_training_holds_out_whole_groups_and_says_where_it_does_not(tmp_path):
    store = open_store(make_ready(tmp_path, groups=PLAYERS))
    run = run_cli(tmp_path, "train-head", **QUICK)
    assert run.returncode == 0, run.stderr
    assert "warning: 8 of 32 test clips are of groups that train clips are of, too" in run.stderr
    assert "such as player 5 (4 train, 8 test)" in run.stderr
    assert "held-out clips share" not in run.stderr and store.groups is not None
    by_clip = run_cli(tmp_path, "train-head", train__heldout_by="clip", **QUICK)
    assert "warning: train.heldout_by is clip: 16 of 16 held-out clips share" in by_clip.stderr


@pytest.mark.slow
def test_nothing_is_said_where_no_group_is_shared(tmp_path):
    make_ready(tmp_path, groups=APART)
    run = run_cli(tmp_path, "train-head", **QUICK)
    assert run.returncode == 0 and "warning" not in run.stderr, run.stderr


def settings_of(*overrides: str, **settings: object):
    given = [f"{key.replace('__', '.')}={value}" for key, value in (QUICK | settings).items()]
    return load_settings(params_of(), [*given, *overrides])


def test_the_part_that_trials_are_judged_by_is_no_dimension(tmp_path, monkeypatch):
    make_ready(tmp_path, groups=PLAYERS)
    monkeypatch.chdir(tmp_path)
    space = 'search.space=["train.heldout_by=clip,group"]'
    with pytest.raises(SettingsError, match=r"train\.heldout_by can't be searched"):
        search.run(settings_of(space))


# ---- errors, before a map is read ----------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Folders with and without groups, whose maps can't be read."""
    folders = {}
    for name, groups in (("groups", PLAYERS), ("none", None), ("classes", list("abcd") * 24)):
        folders[name] = tmp_path_factory.mktemp(name)
        damage_clips(make_ready(folders[name], groups=groups), 16)
    return folders


FOUR = {"dataset__num_folds": 4}
BAD = [
    ("none", ablation, FOUR, "its clips tell no groups"),
    ("groups", ablation, {}, "dataset.num_folds null; set dataset.num_folds"),
    ("groups", ablation, {"dataset__num_folds": 9}, "set it to at most 8"),
    ("classes", ablation, FOUR, "has all clips of class"),
    ("groups", ablation, FOUR | {"evaluate__split": "val"}, "no map of split 'val'"),
    ("none", train_head, FOUR | {"dataset__fold": 0}, "tell no groups"),
    ("groups", train_head, {"dataset__fold": 0}, "fold is 0 and num_folds null"),
    ("groups", train_head, FOUR | {"dataset__fold": 4}, "fold is 4, expected 0 to 3"),
    ("groups", train_head, {"dataset__num_folds": 1}, "dataset.num_folds"),
    (
        "none",
        train_head,
        {"train__heldout_by": "group"},
        "train.heldout_by is group, and the clips tell no groups: set it to clip",
    ),
    (
        "groups",
        train_head,
        {"train__heldout_by": "group", "train__heldout_fraction": 0.01},
        "is small enough to hold out; raise the fraction or set train.heldout_by to clip",
    ),
    ("groups", train_head, {"train__heldout_by": "player"}, "train.heldout_by"),
]


@pytest.mark.parametrize(("folder", "stage", "settings", "expected"), BAD)
def test_bad_input_is_one_clear_line(damaged, monkeypatch, folder, stage, settings, expected):
    monkeypatch.chdir(damaged[folder])
    with pytest.raises(UserError) as error:
        given = {"ablate__folds": "true", "ablate__grid": "[udl.enabled=false]"}
        stage.run(settings_of(**(given if stage is ablation else {}) | settings))
    told = str(error.value)
    assert expected in told and "maps/c." not in told and "\n" not in told.strip()
    assert not list(Path("outputs/ablation").glob("*.json"))


def test_the_command_says_it_in_a_line(damaged):
    told = tell_plainly(run_cli(damaged["none"], "ablate", "--folds", *GRID, **QUICK | FOUR))
    assert "its clips tell no groups" in told and "docs/groups.md" in told


def test_finetuning_refuses_a_fold(damaged):
    fold = {"dataset__num_folds": 4, "dataset__fold": 1}
    told = tell_plainly(run_cli(damaged["groups"], "pretrain-backbone", **QUICK | fold))
    assert "dataset.fold is 1, and pretrain-backbone takes the splits of the clip index" in told


def test_folds_follow_the_seed_of_the_data_set(tmp_path):
    store = open_store(make_ready(tmp_path, groups=PLAYERS))
    first, again, other = (
        [fold.splits.tolist() for fold in store.deal_folds(4, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert np.mean([splits.count("test") for splits in other]) == NUM_CLIPS / 4
