"""`compare`: runs from folders and from git revisions, and plain words for what is no run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_json
from stages.report import outputs_of
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
