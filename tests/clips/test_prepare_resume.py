"""Checking videos goes on where it was killed, and looks again at what changed or was damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsts_pipeline.base.settings import DatasetSettings
from dsts_pipeline.clips import videos as videos_module
from dsts_pipeline.clips.prepare import prepare_clips
from tests.clips.videos import write_video

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIPS = 12


@pytest.fixture
def root(tmp_path):
    for n in range(NUM_CLIPS):
        write_video(tmp_path / "data" / f"{n:02d}.mp4", num_frames=3 + n, size=(32, 32), seed=n)
    rows = [f"{n:02d}.mp4,a,{'test' if n > 8 else 'train'}" for n in range(NUM_CLIPS)]
    (tmp_path / "data" / "annotations.csv").write_text("\n".join(["path,label,split", *rows]))
    return tmp_path / "data"


@pytest.fixture
def probed(monkeypatch):
    """Names of the files that were really looked at since it was last cleared."""
    names: list[str] = []
    real = videos_module.probe

    def spy(path):
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(videos_module, "probe", spy)
    return names


def prepare(root, **changes):
    cache = root.parent / "cache.jsonl"
    dataset = DatasetSettings(
        name="mine", format="csv", root=str(root), max_problem_fraction=0.5, **changes
    )
    index, _ = prepare_clips(dataset, cache_path=cache)
    return index


def test_a_second_run_looks_at_nothing_and_says_the_same(root, probed):
    first = prepare(root)
    assert len(probed) == NUM_CLIPS
    probed.clear()
    assert prepare(root) == first
    assert probed == []


def test_a_bad_file_is_remembered_too_but_not_a_missing_one(root, probed):
    (root / "03.mp4").write_bytes(b"no video " * 50)
    late = (root / "04.mp4").rename(root / "late.mp4")
    reasons = {p.clip_id: p.reason for p in prepare(root).problems}
    assert reasons["04"] == f"the video file is missing: looked for {root / '04.mp4'}"
    assert "03" in reasons
    probed.clear()
    late.rename(root / "04.mp4")
    assert {p.clip_id: p.reason for p in prepare(root).problems} == {"03": reasons["03"]}
    assert probed == ["04.mp4"]


def test_a_changed_file_is_looked_at_again(root, probed):
    before = prepare(root)
    probed.clear()
    write_video(root / "05.mp4", num_frames=20, size=(32, 32))
    os.utime(root / "06.mp4", ns=(0, 1))
    after = prepare(root)
    assert sorted(probed) == ["05.mp4", "06.mp4"]
    assert after.clips[5].num_frames == 20 and after.clips[6] == before.clips[6]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"num_frames": 7', b'"num_frames": 9'),
        lambda content: content[:900] + bytes(40) + content[940:],
        lambda content: b"\xff\xfe garbage\n\n" + content[1:],
        lambda content: content.replace(b'"sha256": "', b'"sha256": "0', 1),
        lambda content: b"",
    ],
    ids=["cut off", "a digit", "zeros", "garbage", "a digest", "emptied"],
)
def test_damaged_lines_are_looked_at_again_and_the_rest_is_not(root, probed, damage):
    first = prepare(root)
    cache = root.parent / "cache.jsonl"
    content = cache.read_bytes()
    assert damage(content) != content
    cache.write_bytes(damage(content))
    probed.clear()
    assert prepare(root) == first
    assert 0 < len(probed) and (len(probed) < NUM_CLIPS or not damage(content))
    probed.clear()
    assert prepare(root) == first and probed == []


def test_another_decoder_version_looks_again(root, probed, monkeypatch):
    prepare(root)
    probed.clear()
    monkeypatch.setattr("dsts_pipeline.clips.videos.name_decoder", lambda name: f"{name} 9")
    prepare(root)
    assert len(probed) == NUM_CLIPS


SLOWLY = """
import sys, time
from dsts_pipeline.base.settings import DatasetSettings
from dsts_pipeline.clips import videos
from dsts_pipeline.clips.prepare import prepare_clips
real = videos.probe
def slow(path):
    time.sleep(0.2)
    return real(path)
videos.probe = slow
dataset = DatasetSettings(name="mine", format="csv", root=sys.argv[1], num_probe_workers=1)
prepare_clips(dataset, cache_path=sys.argv[2])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on(root, probed, how):
    cache = root.parent / "cache.jsonl"
    command = [sys.executable, "-c", SLOWLY, str(root), str(cache)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if cache.exists() and cache.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(30) != 0
    num_known = cache.read_bytes().count(b"\n")
    assert 3 <= num_known < NUM_CLIPS
    index = prepare(root)
    assert len(probed) == NUM_CLIPS - num_known
    assert len(index.clips) == NUM_CLIPS


def test_what_is_remembered_does_not_depend_on_workers(root):
    first = prepare(root, num_probe_workers=4)
    lines = (root.parent / "cache.jsonl").read_text().splitlines()
    (root.parent / "cache.jsonl").unlink()
    assert prepare(root, num_probe_workers=1) == first
    assert (root.parent / "cache.jsonl").read_text().splitlines() == lines
    assert json.loads(lines[0].partition(" ")[2])[1] == str(root / "00.mp4")
