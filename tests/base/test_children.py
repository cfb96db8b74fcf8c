"""A parent that is killed leaves nobody behind; what it started holds no pipe of its caller."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsts_pipeline.base import children
from dsts_pipeline.base.children import map_in_processes
from tests.extract.processes import descendants_of, wait_until_gone
from tests.pipeline import command_of

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys
from tests.base import test_children
if __name__ == "__main__":
    for _ in test_children.map_in_processes(test_children.wait, range(8), num_workers=2):
        print("one", flush=True)
"""


def wait(number: int) -> tuple[int, list[str]]:
    """Half a second's work; what this process reads from and writes to."""
    time.sleep(0.5)
    return number, [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in (0, 1)]


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def kill_and_look(process: subprocess.Popen[bytes]) -> None:
    """Kill it alone; all below it end, and so does what its caller reads."""
    below = descendants_of(process.pid)
    assert below
    process.kill()
    started = time.monotonic()
    process.communicate(timeout=15)  # to the end of standard output
    assert wait_until_gone(below, 15 - (time.monotonic() - started)), below


def wait_for_children(process: subprocess.Popen[bytes], count: int) -> None:
    deadline = time.monotonic() + 60
    while len(descendants_of(process.pid)) < count:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def test_results_come_in_order_from_processes_without_our_pipes():
    found = list(map_in_processes(wait, range(4), num_workers=2))
    assert found == [(number, [os.devnull, os.devnull]) for number in range(4)]


@pytest.mark.parametrize("moment", ["starting", "working"])
def test_no_worker_outlives_a_killed_parent(tmp_path, moment):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = start([sys.executable, str(script)], tmp_path)
    if moment == "working":
        assert process.stdout is not None and process.stdout.readline()
    else:
        wait_for_children(process, 2)
    kill_and_look(process)


@pytest.mark.parametrize("system", ["linux", "elsewhere"])
def test_the_thread_alone_would_do(tmp_path, system):
    """Also where no signal tells of a parent's death."""
    script = tmp_path / "child.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "from dsts_pipeline.base.children import end_with_parent\n"
        "if len(sys.argv) > 2:\n"
        "    sys.platform = sys.argv[1]\n"
        "    end_with_parent(int(sys.argv[2]))\n"
        "else:\n"
        "    subprocess.Popen([sys.executable, __file__, sys.argv[1], str(os.getpid())])\n"
        "    print('begun', flush=True)\n"
        "time.sleep(300)\n"
    )
    process = start([sys.executable, str(script), system], tmp_path)
    assert process.stdout is not None and process.stdout.readline()
    kill_and_look(process)


def test_what_is_begun_on_loss_has_time(tmp_path, monkeypatch):
    script, note = tmp_path / "child.py", tmp_path / "note"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from dsts_pipeline.base import children\n"
        "children._SAVING_SECONDS = 1.0\n"
        "gone = os.fork()\n"
        "if gone:\n"
        "    os._exit(0)\n"
        "children.end_with_parent(1 << 22, on_loss=lambda: Path(sys.argv[1]).write_text('saved'))\n"
        "time.sleep(300)\n"
    )
    process = start([sys.executable, str(script), str(note)], tmp_path)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while not note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert note.read_text() == "saved"


@pytest.mark.long
@pytest.mark.parametrize("attempt", range(3))
def test_prepare_that_is_killed_while_it_renders(tmp_path, attempt):
    many = {"dataset__render__num_train": 4000, "dataset__render__num_workers": 2}
    process = start(command_of("prepare", **many), tmp_path)
    wait_for_children(process, 3)  # two that render, and the one that counts semaphores
    time.sleep(random.Random(os.urandom(8)).uniform(0, 3))
    kill_and_look(process)


def test_interrupts_wait_for_the_start():
    with children._interrupts_held():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


# ---- a budget ------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Minutes that tests set."""
    now = [0.0]
    monkeypatch.setattr(children.time, "monotonic", lambda: 60.0 * now[0])
    return now


def test_no_epoch_is_begun_that_would_end_after_the_budget(clock):
    stop = children.StopRequest(budget=children.Budget(10.0))
    for minute, is_over in ((4.0, False), (8.0, True)):
        clock[0] = minute
        stop.end_epoch()
        assert stop.budget.is_over is stop.requested is is_over
    assert stop.budget.minutes_left == pytest.approx(2.0)


def test_the_first_epoch_is_trained_whatever_the_budget(clock):
    stop = children.StopRequest(budget=children.Budget(0.001))
    clock[0] = 5.0
    stop.look_at_budget()
    assert not stop.requested
    stop.end_epoch()
    assert stop.requested


def test_without_a_budget_nothing_ends(clock):
    stop = children.StopRequest()
    clock[0] = 1e6
    stop.end_epoch()
    assert not stop.requested and stop.budget.minutes_left is None
