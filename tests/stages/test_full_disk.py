"""Stages on a disk that is full: one line with the file, the bytes wanted and free."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.feature_store import open_store
from tests.mounts import can_mount, in_mount
from tests.pipeline import command_of, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, make_ready

pytestmark = pytest.mark.slow
SETTINGS = QUICK | {"evaluate__num_bootstrap": 100}
RUN = "import os, sys; os.chdir(sys.argv[2]); os.execv(sys.argv[3], sys.argv[3:])"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which evaluate has run."""
    folder = tmp_path_factory.mktemp("run")
    if not can_mount(folder / "probe"):
        pytest.skip("no tmpfs can be mounted here (unshare -rm)")
    store = open_store(make_ready(folder))
    clips = tuple(
        Clip(name, f"{name}.mp4", int(label), split, 16, 0, 16, 0, "0" * 64)
        for name, label, split in zip(store.video_ids, store.labels, store.splits, strict=True)
    )
    index = ClipIndex("small", str(folder), tuple(store.class_names), (), (), clips)
    index.save(folder / "outputs" / "clips.json")
    features = folder / "outputs" / "features.json"
    write_json(features, read_json(features) | {"failures": []})
    for command in ("train-head", "evaluate"):
        assert run_cli(folder, command, **SETTINGS).returncode == 0
    return folder


@pytest.mark.parametrize(
    ("command", "place", "size", "what"),
    [
        ("train-head", "heads", "8k", "heads/.*"),
        ("evaluate", "evaluation", "4k", "evaluation/.*"),
        ("evaluate", "evaluation", "24k", "evaluation/.*"),
        ("report", "report", "16k", "report/.*"),
    ],
)
def test_a_full_disk_is_one_line(trained, command, place, size, what):
    full = str(trained / "outputs" / place)
    told = in_mount(f"size={size}", RUN, full, str(trained), *command_of(command, **SETTINGS))
    run = subprocess.CompletedProcess([], told.returncode, told.stdout, told.stderr)
    words = r"No space left on device \([\d.]+ (k|M)?B?(bytes)? ?wanted, .* are free\); free space"
    assert re.search(rf"error: outputs/{what}: {words}", tell_plainly(run)), told.stderr
