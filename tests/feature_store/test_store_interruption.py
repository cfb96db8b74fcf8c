"""Kill real writers, damage finished stores, resume: the finished store has the same bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import StoreWriter, manifest, open_store
from tests.feature_store.small_store import (
    make_plan,
    read_tree,
    start_writer,
    write_shard,
    write_store,
)

NUM_KILLS = 50


@pytest.mark.long
def test_writer_killed_fifty_times_ends_with_the_same_bytes(tmp_path):
    """int8 with zstd, the store with the most files; 100 shards, so that each kill finds work."""
    form = {"dtype": "int8", "codec": "zstd", "num_clips": 500}
    process = start_writer(tmp_path / "undisturbed", **form)
    assert process.communicate(timeout=120)[0].endswith("finished\n")
    (undisturbed,) = (tmp_path / "undisturbed").iterdir()

    chance, left_over = random.Random(0), 0
    store = tmp_path / "killed" / undisturbed.name
    for _ in range(NUM_KILLS):
        process = start_writer(tmp_path / "killed", **form)
        for _ in range(chance.randrange(3)):
            assert process.stdout.readline().startswith("claimed")
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        left_over += any(store.rglob(".*.tmp"))
        with pytest.raises(StoreError, match=r"python cli\.py extract"):
            open_store(store)
    assert left_over > 0, "no kill hit a shard that was being written"
    last = start_writer(tmp_path / "killed", **form)
    assert last.communicate(timeout=120)[0].endswith("finished\n")
    assert read_tree(store) == read_tree(undisturbed)


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


@pytest.mark.slow
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
        assert writer.claim() == 1
        assert not list(writer.path.rglob("*.tmp")), "a claimed shard has no left-overs"
    write_store(tmp_path)
    assert (writer.path / "maps/c.3.0.0.0.0").stat().st_mtime_ns == done


def test_damage_of_the_right_size_is_found_by_its_digest_once(tmp_path, monkeypatch):
    path = write_store(tmp_path)
    expected, shard = read_tree(path), path / "maps/c.2.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    digested: list[str] = []

    def count(file):
        digested.append(file.name)
        return real(file)

    real = manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", count)
    with StoreWriter(tmp_path, make_plan()) as writer:
        assert writer.pending_shards() == [2]
        assert digested == [f"c.{number}.0.0.0.0" for number in range(5)]
        assert list(claims_written(writer)) == [2]
        writer.finish({"version": "0", "command": "extract"})
    assert len(digested) == 6, "the damaged one again before it is written, the others once"
    assert read_tree(path) == expected


def claims_written(writer):
    for shard in writer.claims():
        write_shard(writer, shard)
        yield shard


def test_a_finished_store_is_unfinished_while_it_is_written_again(tmp_path):
    path = write_store(tmp_path)
    with StoreWriter(tmp_path, make_plan()) as writer:
        write_shard(writer, 1, failures={})  # Clip 6 could be decoded this time.
        writer.flush()
        with pytest.raises(StoreError, match="unfinished store"):
            open_store(path)
        writer.finish({})
    assert len(open_store(path)) == 22
