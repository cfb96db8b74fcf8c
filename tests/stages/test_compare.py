"""`compare`: runs from folders and from git revisions, and plain words for what is no run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError, SettingsError
from dsts_pipeline.base.files import read_signed, write_json
from dsts_pipeline.metrics import Predictions
from stages.report import outputs_of, read_weights
from tests.pipeline import run_cli, tell_plainly
from tests.report.report_example import make_inputs

SMALL = {"num_clips": 40, "num_classes": 6, "num_neurons": 3, "num_layers": 1}


def write_run(outputs: Path, **sizes: int) -> Path:
    """The files that `compare` reads of a run."""
    inputs = make_inputs(**(SMALL | sizes))
    classes = list(inputs.class_names)
    write_json(outputs / "evaluation" / "metrics.json", {**inputs.metrics, "classes": classes})
    for name, answers in inputs.predictions.items():
        answers.save(outputs / "evaluation" / "predictions" / f"{name}.npz")
        history = outputs / "heads" / name / "history.json"
        write_json(history, {"epochs": inputs.histories[name]})
    return outputs


@pytest.mark.slow
def test_two_folders_give_a_page_with_files_beside_it(tmp_path):
    write_run(tmp_path / "one" / "outputs")
    write_run(tmp_path / "two")
    done = run_cli(tmp_path, "compare", "one", "two", "--out", "page/compare.html")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "page" / "compare.html").read_text()
    assert "two minus one" in html
    assert (tmp_path / "page" / "tables" / "differences.tex").exists()
    assert (tmp_path / "page" / "plots" / "difference_1.png").exists()


def test_runs_of_other_clips_are_refused(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", num_clips=41)
    told = tell_plainly(run_cli(tmp_path, "compare", "one", "two"))
    assert "two was evaluated on other clips than one: 1 are in one of them only" in told


def test_what_is_no_run_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no evaluated run"):
        outputs_of("empty", tmp_path)
    for name in ("nowhere", "--help"):
        with pytest.raises(DataError, match="neither a folder nor a git revision"):
            outputs_of(name, tmp_path)


@pytest.mark.slow
def test_a_git_revision_gives_its_results_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    call("git", "init", "-q")
    call(sys.executable, "-m", "dvc", "init", "-q")
    write_run(tmp_path / "outputs")
    call(sys.executable, "-m", "dvc", "add", "outputs/evaluation", "outputs/heads")
    call("git", "add", ".")
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    call("git", *who, "commit", "-qm", "one run")
    before = (tmp_path / "outputs" / "evaluation" / "metrics.json").read_bytes()
    write_run(tmp_path / "outputs", num_classes=7)
    found = outputs_of("HEAD", tmp_path / "scratch")
    assert (found / "evaluation" / "metrics.json").read_bytes() == before
    assert (found / "heads" / "dsts" / "history.json").exists()
    call("rm", "-rf", ".dvc/cache")
    with pytest.raises(DataError, match="HEAD: its results are not at hand"):
        outputs_of("HEAD", tmp_path / "again")


def test_weights_of_fused_runs_are_positive_numbers_one_a_run():
    assert read_weights("", 2) == [1.0, 1.0]
    assert read_weights("1,1.5", 2) == [1.0, 1.5]
    for wrong in ("1", "1,x", "1,0", "1,inf", "1,nan"):
        with pytest.raises(SettingsError, match="2 positive numbers"):
            read_weights(wrong, 2)


@pytest.mark.slow
def test_runs_are_fused_into_a_run_of_its_own(tmp_path):
    streams = []
    for number, name in enumerate(("rgb", "flow")):
        outputs = write_run(tmp_path / name)
        place = outputs / "evaluation" / "predictions" / "dsts.npz"
        answers = Predictions.load(place)
        turned = np.roll(answers.probabilities, number, axis=1)
        changed = Predictions(answers.clip_ids, answers.labels, turned, answers.neurons)
        changed.save(place)
        streams.append(changed)
    done = run_cli(tmp_path, "compare", "rgb", "flow", "--fuse", "--weights", "1,3")
    assert done.returncode == 0, done.stderr
    assert "fused minus" not in done.stdout and "2 streams" in done.stdout
    fused = tmp_path / "outputs" / "compare" / "fused" / "evaluation"
    found = Predictions.load(fused / "predictions" / "two_streams.npz")
    expected = 0.25 * streams[0].probabilities + 0.75 * streams[1].probabilities
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    metrics = read_signed(fused / "metrics.json")
    pairs = [(c["first_head"], c["second_head"]) for c in metrics["comparisons"]]
    assert ("two_streams", "stream_1") in pairs and ("two_streams", "stream_2") in pairs
    html = (tmp_path / "outputs" / "compare" / "compare.html").read_text()
    assert "rgb minus fused" in html and "flow minus fused" in html
    twice = run_cli(tmp_path, "compare", "outputs/compare/fused", "rgb", "--fuse")
    assert "is fused already" in tell_plainly(twice)
