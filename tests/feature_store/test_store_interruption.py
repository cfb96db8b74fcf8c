"""Kill real writers, fill the disk, write twice at once: the finished store has the same bytes."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.feature_store import small_store
from tests.feature_store.small_store import make_plan, read_tree, write_shard, write_store

NUM_KILLS = 12
ROOT = Path(__file__).parents[2]


def start_writer(root: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, small_store.__file__, str(root)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_writer_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    process = start_writer(tmp_path / "undisturbed")
    start = time.monotonic()
    assert process.wait(60) == 0
    duration_seconds = time.monotonic() - start
    (undisturbed,) = (tmp_path / "undisturbed").iterdir()

    chance, killed, unfinished = random.Random(0), 0, 0
    for _ in range(NUM_KILLS):
        process = start_writer(tmp_path / "killed")
        time.sleep(chance.uniform(0, duration_seconds / 6))
        process.send_signal(signal.SIGKILL)
        killed += process.wait(60) == -signal.SIGKILL
        try:
            open_store(tmp_path / "killed" / undisturbed.name)
        except StoreError as error:
            assert "python cli.py extract" in str(error)
            unfinished += 1
    assert killed > 0 and unfinished > 0
    assert start_writer(tmp_path / "killed").wait(60) == 0
    assert read_tree(tmp_path / "killed" / undisturbed.name) == read_tree(undisturbed)
    open_store(undisturbed).verify()


def run_until_step(root: Path, last_step: int) -> bool:
    """Write the store in a child that dies before its n-th change to the disk; whether it died."""
    child = os.fork()
    if child == 0:
        steps = 0

        def die_at_last(function):
            def step(*arguments, **keywords):
                nonlocal steps
                steps += 1
                if steps == last_step:
                    os._exit(9)
                return function(*arguments, **keywords)

            return step

        try:
            for name in ("fsync", "replace", "unlink"):
                setattr(os, name, die_at_last(getattr(os, name)))
            write_store(root)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_death_before_every_single_step(tmp_path):
    expected, step = read_tree(write_store(tmp_path / "undisturbed")), 1
    while run_until_step(tmp_path / str(step), step):
        assert read_tree(write_store(tmp_path / str(step))) == expected, f"step {step}"
        step += 1
    assert step > 40


def test_death_before_every_step_of_a_repair(tmp_path):
    expected, step, died = read_tree(write_store(tmp_path / "undisturbed")), 1, True
    while died:
        path = write_store(tmp_path / str(step))
        for shard in (1, 4):
            (path / f"maps/c.{shard}.0.0.0.0").write_bytes(b"damaged")
        died = run_until_step(tmp_path / str(step), step)
        assert read_tree(write_store(tmp_path / str(step))) == expected, f"step {step}"
        step += 1
    assert step > 10


def test_resume_writes_only_what_is_pending(tmp_path):
    with StoreWriter(tmp_path, make_plan()) as writer:
        write_shard(writer, 0)
        write_shard(writer, 3)
        done = (writer.path / "maps/c.3.0.0.0.0").stat().st_mtime_ns
    (writer.path / "maps/.c.1.0.0.0.0.x.tmp").write_bytes(b"left over")
    (writer.path / "maps/c.2.0.0.0.0").write_bytes(b"no sidecar vouches for this")
    with StoreWriter(tmp_path, make_plan()) as writer:
        assert writer.pending_shards() == [1, 2, 4]
    write_store(tmp_path)
    assert (writer.path / "maps/c.3.0.0.0.0").stat().st_mtime_ns == done
    assert not list(writer.path.rglob("*.tmp"))


def test_no_room_in_the_middle_of_a_shard(tmp_path):
    expected = read_tree(write_store(tmp_path / "undisturbed"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with StoreWriter(tmp_path / "full", make_plan()) as writer:
        write_shard(writer, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        try:
            with pytest.raises(
                StoreError, match=r"c\.1\.0\.0\.0\.0: can't be written .*free space"
            ):
                write_shard(writer, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(writer.path.rglob("*.tmp"))
        assert not (writer.path / "maps/c.1.0.0.0.0").exists()
    assert read_tree(write_store(tmp_path / "full")) == expected


def test_second_writer_is_turned_away_until_the_first_dies(tmp_path):
    plan = make_plan()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            writer = StoreWriter(tmp_path, plan)
            os.write(ready_write, b"x")
            time.sleep(60)
            writer.close()
        finally:
            os._exit(1)
    try:
        os.read(ready_read, 1)
        with pytest.raises(StoreError, match="another process is writing this store"):
            StoreWriter(tmp_path, plan)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    write_store(tmp_path)


def test_a_finished_store_is_unfinished_while_it_is_written_again(tmp_path):
    path = write_store(tmp_path)
    with StoreWriter(tmp_path, make_plan()) as writer:
        write_shard(writer, 1, failures={})  # Clip 6 could be decoded this time.
        with pytest.raises(StoreError, match="unfinished store"):
            open_store(path)
        writer.finish({})
    assert len(open_store(path)) == 22


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "stores").write_text("a file")
    with pytest.raises(StoreError, match="can't be written"):
        StoreWriter(tmp_path / "stores", make_plan())
