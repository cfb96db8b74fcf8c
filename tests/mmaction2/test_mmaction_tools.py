"""mmaction2's own tools/train.py and tools/test.py, as they lie in its wheel, on rendered clips.

Two epochs from the embedded backbone by UDL; then test.py's top-1 is that of `evaluate` on the
converted checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.pipeline import ROOT, TINY, WEIGHTS, run_cli, tell_plainly

CONFIG = ROOT / "configs" / "mmaction2" / "dsts_stick_r18_stick-diving.py"
NUM_TEST = 24


def run_tool(folder, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def run_command(folder, *arguments, **settings):
    settings = {key.replace(".", "__"): value for key, value in TINY.items()} | settings
    done = run_cli(folder, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which tools/train.py has run two epochs on 48 clips."""
    from dsts_pipeline.extract.mmaction_compat import zoo_folder

    folder = tmp_path_factory.mktemp("mmaction")
    run_command(folder, "prepare")
    run_command(folder, "export-annotations", "outputs/mmaction2")
    run_command(folder, "convert-checkpoint", str(WEIGHTS), "start.pth")
    tool = zoo_folder().parents[1] / "tools" / "train.py"
    log = run_tool(
        folder, tool, CONFIG, "--work-dir", "work", "--cfg-options", "load_from=start.pth"
    )
    return folder, log


@pytest.mark.long
def test_train_runs_two_epochs_and_validates(trained):
    folder, log = trained
    assert "Epoch(train) [2][3/3]" in log and "Epoch(val) [2][2/2]" in log
    for number in (1, 2):
        assert (folder / "work" / f"epoch_{number}.pth").is_file()


@pytest.mark.long
def test_tools_top1_is_that_of_evaluate(trained):
    folder, _ = trained
    launcher = ("-m", "dsts_pipeline.mmaction2", "test", CONFIG, "work/epoch_2.pth")
    log = run_tool(folder, *launcher, "--work-dir", "tested", "--dump", "answers.pkl")
    run_command(folder, "convert-checkpoint", "work/epoch_2.pth", "ours")
    weights = {"backbone__weights": "ours/backbone.safetensors"}
    run_command(folder, "extract", **weights)
    run_command(folder, "convert-checkpoint", "work/epoch_2.pth", "ours", "--store", **weights)
    run_command(folder, "evaluate", **weights)

    with (folder / "answers.pkl").open("rb") as file:  # written a moment ago by the test itself
        answers = pickle.load(file)
    told = np.array([int(answer["pred_label"]) for answer in answers])
    labels = np.array([int(answer["gt_label"]) for answer in answers])
    metrics = json.loads((folder / "outputs" / "evaluation" / "metrics.json").read_text())
    top1 = metrics["heads"]["dsts"]["top1"]
    assert len(told) == NUM_TEST and f"acc/top1: {(told == labels).mean():.4f}" in log
    assert top1 == pytest.approx((told == labels).mean())
    with np.load(folder / "outputs" / "evaluation" / "predictions" / "dsts.npz") as ours:
        assert (ours["labels"] == labels).all()
        assert (ours["probabilities"].argmax(axis=1) == told).all()
        scores = np.stack([answer["pred_score"].numpy() for answer in answers])
        # Maps are cached as float16.
        np.testing.assert_allclose(ours["probabilities"], scores, atol=0.01)


@pytest.mark.long
def test_training_goes_on_from_its_checkpoint(trained):
    folder, _ = trained
    options = ("--work-dir", "work", "--resume", "--cfg-options", "train_cfg.max_epochs=3")
    log = run_tool(folder, "-m", "dsts_pipeline.mmaction2", "train", CONFIG, *options)
    assert "resumed epoch: 2" in log and "Epoch(train) [3][3/3]" in log
    assert "Epoch(train) [2]" not in log


@pytest.mark.long
def test_head_of_other_weights_is_not_made_this_stores(trained):
    folder, _ = trained
    run_command(folder, "extract")  # the embedded backbone's maps
    command = ("convert-checkpoint", "work/epoch_1.pth", "other", "--store")
    told = tell_plainly(run_cli(folder, *command))
    assert "extract with --set backbone.weights=other/backbone.safetensors first" in told


@pytest.mark.slow
@pytest.mark.parametrize("address", ["dsts_pipeline.mmaction2", "dsts_pipeline.serve.mmaction2"])
def test_launcher_names_the_tools(tmp_path, address):
    command = [sys.executable, "-m", address, "tain"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 1 and b"tain is no tool of mmaction2" in done.stderr
    assert b"train" in done.stderr and b"Traceback" not in done.stderr
