"""Whole trainings by several processes: started by us or by torchrun, stopped, one of them killed.

Float64: two processes with batches of 4 end with the weights of one process with batches of 8.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.extract.processes import descendants_of, wait_until_gone
from tests.learn.train_process import new_head, train_variant

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("train_process.py")
ROOT = Path(__file__).resolve().parents[2]


def start(*command):
    """A training whose first process's batches can be followed."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(folder):
    return start(SCRIPT, folder, "joined", "devices=2", "double")


@pytest.fixture(scope="module")
def of_one():
    """Values and history of one process with the joined batch; trained away from the start."""
    head, history = train_variant("joined", lambda: None, None, double=True)
    begin = new_head("joined", double=True).state_dict()
    assert any(entry["best"] for entry in history)
    assert (head.state_dict()["classifier.weight"] - begin["classifier.weight"]).abs().max() > 1e-3
    return head.state_dict(), history


def check(folder, of_one):
    values, history = of_one
    found = load_file(folder / "joined.safetensors")
    for name, value in values.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
    again = json.loads((folder / "joined.json").read_text())
    for one, two in zip(history, again, strict=True):
        for name in ("train_loss", "train_accuracy", "heldout_loss", "heldout_accuracy"):
            assert two[name] == pytest.approx(one[name], abs=1e-9)
        assert two["layers"] == one["layers"]
    assert not (folder / "checkpoints").exists()


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def follow(process, num_reads):
    for _ in range(num_reads):
        assert process.stdout.readline(), process.stderr.read()


def test_sigterm_to_the_first_stops_both_and_both_go_on(tmp_path, of_one):
    process = start_two(tmp_path)
    follow(process, 16)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 99, errors
    assert "asked to stop: training saved after step" in errors
    process = start_two(tmp_path)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "goes on from" in errors
    check(tmp_path, of_one)


def test_killed_process_ends_the_other_which_goes_on_when_repeated(tmp_path, of_one):
    process = start_two(tmp_path)
    follow(process, 20)
    (child,) = children_of(process.pid)
    os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=100)
    assert process.returncode != 0 and time.monotonic() - began < 60
    process = start(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(SCRIPT, tmp_path, "joined", "devices=2", "double"),
    )
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "goes on from" in errors
    check(tmp_path, of_one)


def test_the_first_one_killed_ends_the_other(tmp_path):
    process = start_two(tmp_path)
    follow(process, 4)
    below = descendants_of(process.pid)
    assert below
    process.kill()
    assert wait_until_gone(below, 20)


def test_a_killed_torchrun_ends_all(tmp_path):
    process = start(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(SCRIPT, tmp_path, "joined", "devices=2", "double"),
    )
    follow(process, 4)
    below = descendants_of(process.pid)
    assert len(below) >= 2
    process.kill()
    assert wait_until_gone(below, 20)
