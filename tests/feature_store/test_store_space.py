"""Room: sizes told beforehand, a full and a read-only file system, memory that stays bounded."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.feature_store import StoreWriter
from dsts_pipeline.feature_store.writer import require_space, survey_store
from tests.feature_store.small_store import make_plan, read_tree, write_shard, write_store
from tests.mounts import can_mount, in_mount

ROOT = Path(__file__).parents[2]


# ---- before the start ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_the_survey_knows_every_byte_beforehand_and_writes_nothing(tmp_path, dtype):
    root, plan = tmp_path / "stores", make_plan(dtype=dtype)
    before = survey_store(root, plan)
    assert not root.exists()
    assert (before.done_bytes, before.pending) == (0, (0, 1, 2, 3, 4))
    with StoreWriter(root, plan) as writer:
        for shard in (0, 2, 4):
            write_shard(writer, shard, failures={})
    partly = survey_store(root, plan)
    assert partly.pending == (1, 3)
    assert partly.total_bytes == before.total_bytes
    with StoreWriter(root, plan) as writer:
        for shard in writer.claims():
            write_shard(writer, shard, failures={})
    after = survey_store(root, plan)
    files = [*writer.path.glob("maps/c*"), *writer.path.glob("scales/c*")]
    assert after.done_bytes == sum(file.stat().st_size for file in files) == before.total_bytes
    assert (after.pending_bytes, after.margin_bytes) == (0, 0)


def test_zstd_takes_at_most_what_was_told(tmp_path):
    plan = make_plan(codec="zstd")
    before = survey_store(tmp_path, plan)
    write_store(tmp_path, plan)
    assert before.is_compressed and survey_store(tmp_path, plan).done_bytes <= before.total_bytes


def test_too_little_room_stops_before_the_start_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    needed = survey_store(tmp_path, make_plan())
    needed = needed.pending_bytes + needed.margin_bytes
    for free, fits in ((needed, True), (needed - 1, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            require_space(survey_store(tmp_path, make_plan()))
            continue
        with pytest.raises(StoreError, match="are needed for 5 shards, .* are free; free space"):
            require_space(survey_store(tmp_path, make_plan()))
        require_space(survey_store(tmp_path, make_plan(codec="zstd")))
        assert "it may fit nevertheless" in capsys.readouterr().err


def test_sizes_are_told_as_disks_are_sold():
    sizes = [0, 999, 1000, 1_500_000, 311 * 10**9, 2 * 10**13]
    told = ["0 bytes", "999 bytes", "1.0 kB", "1.5 MB", "311.0 GB", "20.0 TB"]
    assert [format_bytes(size) for size in sizes] == told


# ---- in the middle ------------------------------------------------------------------------------


FILL = """
import json, os, sys
from pathlib import Path
from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import open_store
from tests.feature_store.small_store import LARGER, make_plan, read_tree, write_store

root, plan = Path(sys.argv[1]), make_plan(**(LARGER | {"num_clips": 60}))
ballast = root / "ballast"
ballast.write_bytes(b"x" * 600_000)
try:
    write_store(root, plan)
    told = None
except StoreError as error:
    told = str(error)
store = root / plan.fingerprint
left = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
early = {path: path.read_bytes() for path in store.glob("maps/c.*")}
ballast.unlink()
write_store(root, plan)
open_store(store).verify()
same = read_tree(store) == read_tree(write_store(Path(sys.argv[2]), plan))
whole = [content == path.read_bytes() for path, content in early.items()]
print(json.dumps([told, left, whole, same]))
"""


def test_a_full_file_system_in_the_middle_of_a_shard(tmp_path):
    """1.3 MB of room for 1 MB of shards and 0.6 MB of something else."""
    if not can_mount(tmp_path / "probe"):
        pytest.skip("no tmpfs can be mounted here (unshare -rm)")
    done = in_mount("size=1300k", FILL, str(tmp_path / "full"), str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    told, left, whole, same = json.loads(done.stdout)
    assert "No space left on device" in told and "free space" in told
    assert "python cli.py extract" in told and "maps/c." in told
    assert not any(name.endswith(".tmp") for name in left)
    assert 0 < len(whole) < 12 and all(whole), "only whole shards are visible"
    assert same, "a rerun with room ends with the bytes of an undisturbed store"


def test_a_file_size_limit_in_the_middle_of_a_shard(tmp_path):
    expected = read_tree(write_store(tmp_path / "undisturbed"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with StoreWriter(tmp_path / "full", make_plan()) as writer:
        write_shard(writer, 0)
        writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        try:
            write_shard(writer, 1)
            with pytest.raises(
                StoreError, match=r"c\.1\.0\.0\.0\.0: can't be written .*free space"
            ):
                writer.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(writer.path.rglob("*.tmp"))
        assert not (writer.path / "maps/c.1.0.0.0.0").exists()
    assert read_tree(write_store(tmp_path / "full")) == expected


REFUSED = """
import sys
from dsts_pipeline.base.errors import StoreError
from tests.feature_store.small_store import write_store
try:
    write_store(sys.argv[1])
except StoreError as error:
    print(error)
"""


def test_a_read_only_file_system_is_told(tmp_path):
    if not can_mount(tmp_path / "probe"):
        pytest.skip("no tmpfs can be mounted here (unshare -rm)")
    done = in_mount("size=1m,ro", REFUSED, str(tmp_path / "stores"))
    assert "can't be written (Read-only file system)" in done.stdout, done.stderr
    assert "choose another store.root" in done.stdout


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "stores").write_text("a file")
    with pytest.raises(StoreError, match="can't be written"):
        StoreWriter(tmp_path / "stores", make_plan())


# ---- memory -------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from dsts_pipeline.feature_store import StorePlan, StoreWriter

shape, num_shards = (64, 8, 8, 8), int(sys.argv[2])  # a map: 131 kB float32, a shard of 16: 2.1 MB
plan = StorePlan({}, [(f"c{i}", 0, "train") for i in range(16 * num_shards)], ["a"], shape,
                 dtype=sys.argv[3], codec=sys.argv[4], samples_per_shard=16)
noise = np.random.default_rng(0).standard_normal((16, *shape), dtype=np.float32)
before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with StoreWriter(sys.argv[1], plan) as writer:
    for shard in writer.claims():
        writer.write_shard(shard, noise + np.float32(shard))
    writer.finish({})
stored = sum(path.stat().st_size for path in writer.path.rglob("*") if path.is_file())
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, noise.nbytes, stored)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "codec"), [("float32", "none"), ("int8", "zstd")])
def test_memory_is_bounded_whatever_the_size_of_the_store(tmp_path, dtype, codec):
    """Two shards of float32 (one gathered, one being written) and a dozen maps in between."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "140", dtype, codec],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    grown, handed_in, stored = map(int, done.stdout.split())
    bound = 2 * handed_in + 12 * handed_in // 16 + 6 * 2**20  # and 6 MiB for code and tables
    assert grown < bound, (grown, bound)
    assert 140 * handed_in > 20 * bound
    if dtype == "float32":
        assert stored > 20 * bound
