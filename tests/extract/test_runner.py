"""Extraction as a whole: real videos, real processes, a real store; stopped, damaged, resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.progress import ClipFailure, check_failures
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.extract.processes import children_of, wait_until_gone
from tests.extract.small_set import (
    NUM_CLIPS,
    PoolingBackbone,
    extract_store,
    index_clips,
    plan_store,
    write_clips,
)
from tests.feature_store.small_store import read_tree


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The store as one process writes it."""
    store, _ = extract_store(tmp_path_factory.mktemp("s"), index_clips(clips), num_decode_workers=0)
    return store


def _map_of(index, position):
    """What the store should hold, computed clip by clip."""
    clip = index.clips[position]
    backbone = PoolingBackbone()
    frames = clip.start_frame + uniform_frames(clip.end_frame - clip.start_frame, 8)
    images = decode_frames(Path(index.root) / clip.path, frames, size_px=backbone.size_px)
    return backbone(torch.from_numpy(images)[None])[0].numpy().astype(np.float16)


def test_each_clip_has_the_map_of_its_own_frames(clips, undisturbed):
    index, store = index_clips(clips), open_store(undisturbed)
    assert store.video_ids == tuple(clip.id for clip in index.clips)
    maps = store.read(range(NUM_CLIPS))
    for position in range(NUM_CLIPS):
        np.testing.assert_array_equal(maps[position], _map_of(index, position))


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 2), (2, 3), (3, 64)])
def test_number_of_processes_and_batch_size_leave_the_bytes_alone(
    clips, undisturbed, tmp_path, workers, batch_size
):
    store, summary = extract_store(
        tmp_path, index_clips(clips), num_decode_workers=workers, batch_size=batch_size
    )
    assert read_tree(store) == read_tree(undisturbed)
    assert (summary.num_clips, summary.failures) == (NUM_CLIPS, ())
    assert 0 < summary.forward_seconds + summary.decode_wait_seconds <= summary.seconds


def test_a_finished_store_is_left_alone(clips, tmp_path):
    store, _ = extract_store(tmp_path, index_clips(clips), num_decode_workers=0)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}
    _, summary = extract_store(tmp_path, index_clips(clips), num_decode_workers=1)
    assert summary.num_clips == 0
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_same_bytes_and_leaves_no_process(
    clips, undisturbed, tmp_path, stop, repository
):
    command = [sys.executable, "-m", "tests.extract.small_set", str(clips), str(tmp_path)]
    with subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        lines = [run.stdout.readline(), run.stdout.readline()]
        children = children_of(run.pid)
        run.send_signal(stop)
        run.wait(timeout=60)
    assert lines == ["shard 0\n", "shard 1\n"]
    assert run.returncode == (128 + stop if stop == signal.SIGTERM else -stop)
    assert children and wait_until_gone(children)
    with StoreWriter(tmp_path, plan_store(index_clips(clips))) as writer:
        assert 0 < len(writer.pending_shards()) <= writer.plan.num_shards - 2
        assert not writer.finished
    store, summary = extract_store(tmp_path, index_clips(clips), num_decode_workers=1)
    assert 0 < summary.num_clips < NUM_CLIPS
    assert read_tree(store) == read_tree(undisturbed)


@pytest.fixture
def broken(tmp_path):
    """Six of the clips are damaged, each in another way."""
    root = tmp_path / "clips"
    write_clips(root, 12)
    (root / "clip1.mp4").write_bytes(b"")
    (root / "clip4.mp4").write_bytes((root / "clip4.mp4").read_bytes()[:900])
    (root / "clip5.mp4").write_text("no video")
    index = index_clips(root)
    (root / "clip7.mp4").unlink()
    content = bytearray((root / "clip8.mp4").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "clip8.mp4").write_bytes(content)
    (root / "clip10.mp4").write_bytes(content[:-5])
    return index


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_clips_are_listed_and_their_neighbours_are_whole(broken, tmp_path, workers):
    store_path, summary = extract_store(
        tmp_path / "s", broken, num_decode_workers=workers, max_failed_fraction=0.5
    )
    reasons = {failure.clip_id: failure.reason for failure in summary.failures}
    assert reasons.keys() == {"clip1", "clip4", "clip5", "clip7", "clip8", "clip10"}
    assert reasons["clip1"] == "it is empty"
    assert reasons["clip7"] == "it cannot be read (No such file or directory)"
    assert reasons["clip8"] == "its content changed since it was indexed"
    assert "bytes, " in reasons["clip10"]
    assert not any(str(broken.root) in reason for reason in reasons.values())
    store = open_store(store_path)
    assert {f["id"]: f["reason"] for f in store.manifest["failures"]} == reasons
    assert store.video_ids == tuple(f"clip{i}" for i in (0, 2, 3, 6, 9, 11))
    for row, position in enumerate((0, 2, 3, 6, 9, 11)):
        np.testing.assert_array_equal(store.read([row])[0], _map_of(broken, position))


def test_too_many_broken_clips_stop_the_run_with_the_first_few(broken, tmp_path):
    with pytest.raises(DataError) as caught:
        extract_store(tmp_path / "s", broken, max_failed_fraction=0.3, batch_size=4)
    text = str(caught.value)
    assert "4 of 12 clips have no map, 3 are allowed" in text
    assert "backbone.max_failed_fraction = 0.3" in text and "clip1: it is empty" in text
    with StoreWriter(tmp_path / "s", plan_store(broken)) as writer:
        assert writer.pending_shards() == [1, 2]


def break_at_clip_3(job):
    """Decode as ever, but meet an error in one file that nobody foresaw."""
    if job.path.endswith("clip3.mp4"):
        raise KeyError(job.path)
    return decode_clip(job)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_that_nobody_foresaw_is_one_clips_failure(clips, undisturbed, tmp_path, workers):
    index = index_clips(clips)
    path, summary = extract_store(
        tmp_path / "s", index, decode=break_at_clip_3, num_decode_workers=workers,
        max_failed_fraction=0.2,
    )  # fmt: skip
    (failure,) = summary.failures
    assert failure == ClipFailure("clip3", "decoding failed: KeyError: 'clip3.mp4'")
    assert "clip3" not in open_store(path).video_ids
    with pytest.raises(DataError, match=f"1 of {NUM_CLIPS} clips have no map, 0 are allowed"):
        extract_store(
            tmp_path / "t", index, decode=break_at_clip_3, num_decode_workers=workers,
            max_failed_fraction=0.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("num_failed", "fraction", "fails"),
    [(0, 0.0, False), (1, 0.0, True), (29, 0.29, False), (30, 0.29, True), (100, 1.0, False)],
)
def test_the_threshold_counts_exactly(num_failed, fraction, fails):
    failures = [ClipFailure(f"c{i}", "r") for i in range(num_failed)]
    if not fails:
        check_failures(failures, 100, max_failed_fraction=fraction)
        return
    with pytest.raises(DataError, match=f"{num_failed} of 100"):
        check_failures(failures, 100, max_failed_fraction=fraction)
