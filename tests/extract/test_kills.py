"""Twenty kills of random processes of an extraction; what is left goes on to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StoreWriter
from tests.extract.processes import children_of, wait_until_gone
from tests.extract.small_set import PoolingBackbone, index_clips, plan_store, write_clips
from tests.feature_store.small_store import read_tree

pytestmark = pytest.mark.long
NUM_KILLS = 20
NUM_CLIPS = 160
COMMAND = [sys.executable, "-m", "tests.extract.small_set"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, NUM_CLIPS)
    return root


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The store as one process writes it, one clip a shard."""
    index = index_clips(clips)
    with StoreWriter(tmp_path_factory.mktemp("s"), plan_store(index, 1)) as writer:
        backbone = PoolingBackbone()
        settings = BackboneSettings(num_decode_workers=0)
        extract_features(ViewPlan(index, backbone), backbone, writer, settings)
        return writer.finish({}).parent


def _start(clips: Path, root: Path, repository: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(clips), str(root), "1", "2"],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_twenty_kills_leave_a_store_of_the_same_bytes(clips, undisturbed, tmp_path, repository):
    generator = random.Random(0)
    killed = {"main": 0, "decoder": 0}
    run = _start(clips, tmp_path, repository)
    try:
        while sum(killed.values()) < NUM_KILLS:
            assert run.stdout is not None
            assert run.stdout.readline(), "it ended before it was killed often enough"
            time.sleep(0.3 * generator.random())
            kind = generator.choice(("main", "decoder", "decoder"))
            processes = [run.pid] if kind == "main" else children_of(run.pid)
            if not processes:
                continue
            try:
                os.kill(generator.choice(processes), signal.SIGKILL)
            except ProcessLookupError:  # it ended between the look and the kill
                continue
            killed[kind] += 1
            if kind == "main":
                run.wait()
                run = _start(clips, tmp_path, repository)
        for _ in run.stdout or ():
            pass
        assert run.wait(timeout=120) == 0
    finally:
        run.kill()
    assert min(killed.values()) >= 4, killed
    assert read_tree(tmp_path / undisturbed.name) == read_tree(undisturbed)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_followed_within_seconds(clips, tmp_path, repository, stop):
    run = _start(clips, tmp_path, repository)
    assert run.stdout is not None
    assert run.stdout.readline() == "shard 0\n"
    decoders = children_of(run.pid)
    started = time.monotonic()
    run.send_signal(stop)
    run.wait(timeout=30)
    assert time.monotonic() - started < 5
    assert run.returncode == (128 + stop if stop == signal.SIGTERM else -stop)
    assert decoders and wait_until_gone(decoders, seconds=5)
