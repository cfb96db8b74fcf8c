"""A Ray cluster that changes while it works: a machine joins, then is lost as a whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.extract.test_engines import (
    SETTINGS,
    _assert_same,
    _prepare,
    _start,
    _wait_for_shards,
    clips,
    undisturbed,
)
from tests.pipeline import command_of

pytestmark = [pytest.mark.long, pytest.mark.slow]
__all__ = ["clips", "undisturbed"]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of one machine of two CPUs, here by processes of its own."""
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()


def _shard_workers() -> list[int]:
    """Processes of Ray that own a backbone, whoever their parent is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::ShardWorker"):
            found.append(int(path.parent.name))
    return found


def test_a_machine_joins_and_is_lost(cluster, clips, undisturbed, tmp_path):
    folder = _prepare(tmp_path, clips)
    command = command_of("extract", "--engine", "ray", **SETTINGS)
    run = _start(folder, command, RAY_ADDRESS=cluster.address, RAY_USAGE_STATS_ENABLED="0")
    try:
        _wait_for_shards(folder, run, 1)
        joined = cluster.add_node(num_cpus=2)
        deadline = time.monotonic() + 120
        while len(_shard_workers()) < 2:
            assert run.poll() is None, "finished before the second machine had a worker"
            assert time.monotonic() < deadline, "the second machine never got a worker"
            time.sleep(0.05)
        done = len(list(folder.glob("stores/*/shards/*.json")))
        _wait_for_shards(folder, run, done + 1)
        cluster.remove_node(joined, allow_graceful=False)
        assert run.wait(300) == 0, (folder / "told.txt").read_text()
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    _assert_same(folder, undisturbed)
