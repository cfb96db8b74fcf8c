"""Two commands that write the same outputs: the second is refused, a killed one blocks nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsts_pipeline.base.files import read_json, write_json
from stages import train_head
from tests.pipeline import ROOT, command_of, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, make_ready

LONG = QUICK | {"train__num_epochs": 500}


@pytest.fixture
def ready(tmp_path) -> Path:
    make_ready(tmp_path)
    return tmp_path


@contextmanager
def at_work(folder: Path, *command: str, **settings: object):
    """A command that has begun to train; killed in the end."""
    process = subprocess.Popen(
        command_of(*command, **settings),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list((folder / "outputs").rglob("state.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tree_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_only_one_command_at_a_time_writes_heads_and_what_follows_from_them(ready):
    with at_work(ready, "train-head", **LONG) as first:
        others = {"head__num_neurons": 3}
        for command, settings in (
            (("train-head",), QUICK | others),
            (("train-head", "--devices", "2"), QUICK | others),
            (("evaluate",), {}),
            (("report",), {}),
        ):
            run = run_cli(ready, *command, **settings)
            assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
            told = f"error: outputs/heads: train-head, process {first.pid} on "
            assert told in run.stderr, run.stderr
        assert first.poll() is None
        assert not (ready / "outputs" / "evaluation").exists()
        # What writes elsewhere goes on beside it.
        run = run_cli(ready, "ablate", "--grid", "head.num_neurons=3", **QUICK)
        assert run.returncode == 0, run.stderr
    # The first one was killed by SIGKILL, and left its lock file.
    assert (ready / "outputs" / ".heads.lock").exists()
    run = run_cli(ready, "train-head", **(QUICK | others))
    assert run.returncode == 0, run.stderr
    curves = (ready / "outputs/dvclive/plots/metrics/train_loss.tsv").read_text().split("\n")
    assert [row.split("\t")[0] for row in curves if row] == ["step", "0", "1"]
    assert read_json(ready / "outputs/heads/dsts/head.json")["arguments"]["num_neurons"] == 3
    assert not (ready / "outputs" / ".heads.lock").exists()
    assert run_cli(ready, "evaluate").returncode == 0


@pytest.mark.long
def test_only_one_ablation_at_a_time(ready):
    grid = "ablate", "--grid", "head.num_neurons=3"
    with at_work(ready, *grid, **LONG) as first:
        told = tell_plainly(run_cli(ready, "ablate", "--grid", "head.num_neurons=1", **QUICK))
        assert f"outputs/ablation: ablate, process {first.pid} on " in told
    assert run_cli(ready, *grid, **QUICK).returncode == 0


@pytest.mark.slow
def test_damage_is_told_by_every_command_that_loads_a_head(ready):
    assert run_cli(ready, "train-head", **QUICK).returncode == 0
    sound = shutil.copytree(ready / "outputs", ready / "sound")
    weights = ready / "outputs/heads/dsts/head.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x40
    weights.write_bytes(bytes(content))
    for command in (
        ("evaluate",),
        ("export", "head.pt2"),
        ("export", "bundle", "--format", "bundle"),
        ("finetune",),
        ("convert-checkpoint", "outputs/heads/dsts", "w.pth"),
    ):
        told = tell_plainly(run_cli(ready, *command, **QUICK))
        assert "head.safetensors: its sha256 is" in told and "train-head" in told, told
    assert not (ready / "w.pth").exists() and not (ready / "bundle").exists()
    shutil.rmtree(ready / "outputs")
    sound.rename(ready / "outputs")
    assert run_cli(ready, "evaluate").returncode == 0


@pytest.mark.slow
def test_a_changed_result_is_told_by_whoever_reads_it(ready):
    for command in ("train-head", "evaluate"):
        assert run_cli(ready, command, **QUICK, evaluate__num_bootstrap=100).returncode == 0
    path = ready / "outputs/evaluation/metrics.json"
    text = path.read_text()
    path.write_text(text.replace('"top1": 0.', '"top1": 0.9', 1))
    assert path.read_text() != text
    for command in (("results",), ("compare", "outputs", "outputs")):
        told = tell_plainly(run_cli(ready, *command))
        assert "metrics.json: changed after it was written" in told


def test_results_of_imported_maps_are_not_awaited_from_dvc(ready):
    path = ready / "outputs/features.json"
    write_json(path, read_json(path) | {"made_of": {"import": {"of": "tests"}}})
    told = tell_plainly(run_cli(ready, "results"))
    assert "no results yet; run `python cli.py train-head`, then `python cli.py evaluate`" in told


def test_an_untrained_head_that_is_kept_is_told():
    worse = {"epoch": 0, "heldout_accuracy": 0.1, "best": False}
    told = train_head._tell_untrained("linear probe", [worse, worse])
    assert told.startswith("warning: linear probe: of 2 epochs none was more accurate")
    assert train_head._tell_untrained("linear probe", [worse, worse | {"best": True}]) == ""
    assert train_head._tell_untrained("linear probe", [{"epoch": 0}]) == "", "nothing is held out"
    assert train_head._tell_untrained("linear probe", []).endswith("so the head is untrained")
