"""Several processes write one store at once: each shard once, the same bytes, none is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time

import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.feature_store.small_store import (
    FAILURES,
    make_plan,
    read_tree,
    start_writer,
    start_writers,
    write_shard,
    write_store,
)


def claimed_by(output: str) -> list[int]:
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("claimed")]


@pytest.mark.slow
@pytest.mark.parametrize("num_writers", [2, 4])
def test_writers_at_once_write_each_shard_once_and_the_same_bytes(tmp_path, num_writers):
    writers = start_writers(num_writers, tmp_path / "shared", num_clips=150, seconds_per_shard=0.02)
    outputs = [writer.communicate(timeout=60) for writer in writers]
    assert all(out.endswith("finished\n") for out, _ in outputs), outputs
    claimed = [claimed_by(out) for out, _ in outputs]
    assert sorted(sum(claimed, [])) == list(range(30)), "each shard by one process"
    assert all(claimed), "each process took part"
    (shared,) = (tmp_path / "shared").iterdir()
    start_writer(tmp_path / "alone", num_clips=150).communicate(timeout=60)
    assert read_tree(shared) == read_tree(tmp_path / "alone" / shared.name)
    open_store(shared).verify()


def test_shards_of_a_dead_writer_are_taken_over_by_a_waiting_one(tmp_path):
    holder = start_writer(tmp_path, num_clips=5, seconds_per_shard=60)
    assert holder.stdout.readline() == "claimed 0\n"
    waiter = start_writer(tmp_path, num_clips=5)
    assert "waiting for 1 shards that other processes write" in waiter.stderr.readline()
    time.sleep(0.7)
    assert waiter.poll() is None
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=20)
    out, error = waiter.communicate(timeout=60)  # importing a CUDA build of torch takes long
    assert out == "claimed 0\nfinished\n" and "waiting" not in error


def in_child(action) -> int:
    """Run `action` in a forked process; its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.fixture
def other_holds_shard_0(tmp_path):
    """A process that holds shard 0 of the small store until it is killed."""
    ready_read, ready_write = os.pipe()

    def hold():
        writer = StoreWriter(tmp_path, make_plan())
        assert writer.claim() == 0
        os.write(ready_write, b"x")
        time.sleep(60)

    child = in_child(hold)
    os.read(ready_read, 1)
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_another_process_holds_is_left_to_it(tmp_path, other_holds_shard_0):
    with StoreWriter(tmp_path, make_plan()) as writer:
        with pytest.raises(StoreError, match="another process is writing shard 0"):
            write_shard(writer, 0)
        claimed = [writer.claim(wait=False) for _ in range(5)]
        assert claimed == [1, 2, 3, 4, None]
        with pytest.raises(ValueError, match=r"shards \[1, 2, 3, 4\] are claimed but not written"):
            writer.claim()
        for shard in claimed[:-1]:
            write_shard(writer, shard)
        with pytest.raises(StoreError, match=r"shards \[0\] of 5 are not written"):
            writer.finish({})


def test_a_shard_that_another_process_completed_meanwhile_is_not_written_again(tmp_path):
    with StoreWriter(tmp_path, make_plan()) as writer:
        assert len(writer.pending_shards()) == 5
        _, status = os.waitpid(in_child(lambda: write_store(tmp_path)), 0)
        assert status == 0
        before = {name: (writer.path / name).stat().st_mtime_ns for name in read_tree(writer.path)}
        assert list(writer.claims()) == []
        writer.finish({"someone": "else"})
        after = {name: (writer.path / name).stat().st_mtime_ns for name in read_tree(writer.path)}
    assert before == after


def test_two_that_finish_at_once_give_one_manifest(tmp_path):
    path = write_store(tmp_path)
    expected = read_tree(path)
    for _ in range(5):
        (path / "manifest.json").unlink()
        children = [in_child(lambda: write_store(tmp_path)) for _ in range(3)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert read_tree(path) == expected


def test_without_locks_a_line_says_so_once_and_work_goes_on(tmp_path, monkeypatch, capsys):
    """What NFS without its lock daemon answers."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    expected = read_tree(write_store(tmp_path / "locked"))
    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert read_tree(write_store(tmp_path / "free")) == expected
    said = capsys.readouterr().err
    assert said.count("no locks here (No locks available)") == 1


def test_look_ahead_and_any_order_give_the_same_bytes(tmp_path):
    expected = read_tree(write_store(tmp_path / "a"))
    with StoreWriter(tmp_path / "b", make_plan()) as writer:
        claimed = [writer.claim() for _ in range(5)]
        for shard in reversed(claimed):
            write_shard(writer, shard, FAILURES)
        assert writer.claim() is None
        writer.finish({"command": "extract", "version": "0"})
    assert read_tree(writer.path) == expected
