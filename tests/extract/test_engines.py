"""The same store from torchrun's processes and from a Ray cluster, some of which are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsts_pipeline.base.files import read_json
from dsts_pipeline.extract.forward import choose_device
from tests.extract.processes import descendants_of
from tests.extract.small_set import index_clips, write_clips
from tests.feature_store.small_store import read_tree
from tests.pipeline import ROOT, WEIGHTS, command_of

pytestmark = pytest.mark.long

NUM_CLIPS = 96
SETTINGS = {
    "dataset__name": "small",
    "backbone__weights": WEIGHTS,
    "backbone__size_px": 32,
    "backbone__batch_size": 4,
    "store__min_shards": 1000,
    "store__shard_bytes": 40_000,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, NUM_CLIPS)
    return root


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The store as one process writes it."""
    folder = _prepare(tmp_path_factory.mktemp("one"), clips)
    run = _start(folder, command_of("extract", **SETTINGS))
    assert run.wait(300) == 0
    store = _store_of(folder)
    assert len(list((store / "shards").glob("*.json"))) >= 20
    return store


def _prepare(folder: Path, clips: Path) -> Path:
    index_clips(clips).save(folder / "outputs" / "clips.json")
    return folder


def _store_of(folder: Path) -> Path:
    return folder / read_json(folder / "outputs" / "features.json")["store"]


def _start(folder: Path, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    defaults = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | defaults | environment,
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "told.txt", "wb"),
        start_new_session=True,
    )


def _torchrun(*options: str) -> list[str]:
    own = command_of("extract", **SETTINGS)[1:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*launcher, "--standalone", *options, *own]


def _wait_for_shards(folder: Path, run: subprocess.Popen[bytes], count: int) -> None:
    deadline = time.monotonic() + 240
    while len(list(folder.glob("stores/*/shards/*.json"))) < count:
        assert run.poll() is None, (folder / "told.txt").read_text()
        assert time.monotonic() < deadline, (folder / "told.txt").read_text()
        time.sleep(0.02)


def _find(run: subprocess.Popen[bytes], words: str) -> list[int]:
    """Processes below `run` whose command line holds `words`."""
    found = []
    for pid in descendants_of(run.pid):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in line:
            found.append(pid)
    return found


def _assert_same(folder: Path, undisturbed: Path) -> None:
    assert read_tree(_store_of(folder)) == read_tree(undisturbed)


@pytest.mark.slow
def test_torchruns_processes_share_the_store(clips, undisturbed, tmp_path):
    folder = _prepare(tmp_path, clips)
    run = _start(folder, _torchrun())
    assert run.wait(300) == 0, (folder / "told.txt").read_text()
    _assert_same(folder, undisturbed)


@pytest.mark.slow
def test_a_killed_process_of_torchrun_is_made_good(clips, undisturbed, tmp_path):
    folder = _prepare(tmp_path, clips)
    run = _start(folder, _torchrun("--max-restarts", "2"))
    _wait_for_shards(folder, run, 3)
    workers = _find(run, f"{sys.executable} -u {ROOT / 'cli.py'}")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert run.wait(300) == 0, (folder / "told.txt").read_text()
    _assert_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_ray_cluster_makes_the_same_store_though_workers_are_killed(clips, undisturbed, tmp_path):
    folder = _prepare(tmp_path, clips)
    command = command_of("extract", "--engine", "ray", "--num-workers", "2", **SETTINGS)
    run = _start(folder, command, RAY_ADDRESS="", RAY_USAGE_STATS_ENABLED="0")
    try:
        for num_shards, victim in ((3, "ray::ShardWorker"), (8, "ray::DecodeWorker")):
            _wait_for_shards(folder, run, num_shards)
            workers = _find(run, victim)
            assert workers
            os.kill(workers[0], signal.SIGKILL)
        assert run.wait(300) == 0, (folder / "told.txt").read_text()
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    _assert_same(folder, undisturbed)
    assert "a worker was lost" in (folder / "told.txt").read_text()


def test_each_process_takes_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    found = [str(choose_device("auto", {"LOCAL_RANK": str(rank)})) for rank in range(6)]
    assert found == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    assert str(choose_device("auto", {})) == "cuda:0"
    assert str(choose_device("cpu", {"LOCAL_RANK": "2"})) == "cpu"


def test_a_missing_device_is_told(monkeypatch):
    from dsts_pipeline.base.errors import UserError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert str(choose_device("auto", {"LOCAL_RANK": "1"})) == "cpu"
    with pytest.raises(UserError, match="backbone.device is cuda, but torch sees no CUDA device"):
        choose_device("cuda", {})
