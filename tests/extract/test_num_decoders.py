"""How many processes decode where that is left open: the rule, and a pool that grows by it."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract import decode_pool
from dsts_pipeline.extract.cluster import _Cluster
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.num_decoders import choose_num_decoders, count_cores
from dsts_pipeline.extract.views import FrameRequest, FrameView
from tests.extract.small_set import extract_store, index_clips, write_clips
from tests.feature_store.small_store import read_tree


@pytest.mark.parametrize(
    ("decode", "work", "cores", "threads", "expected"),
    [
        (0.1, 0.1, 16, 0, 2),  # one would just do: 1.25
        (0.4, 0.1, 16, 0, 5),
        (9.0, 0.1, 16, 0, 15),  # a core is left to this process
        (0.01, 0.1, 16, 0, 1),
        (9.0, 0.1, 1, 0, 1),
        (0.1, 0.0, 8, 0, 7),  # work that takes no time
        (0.1, 0.1, 2, 2, 1),  # a third of all work on two cores
        (0.1, 0.001, 2, 2, 2),  # nearly all of it
        (0.4, 0.1, 16, 16, 4),
    ],
)
def test_as_many_decoders_as_the_consumer_and_the_cores_ask_for(
    decode, work, cores, threads, expected
):
    assert choose_num_decoders(decode, work, cores, threads) == expected


def test_cores_are_bounded_by_affinity_quota_and_neighbours(tmp_path):
    num_own = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert count_cores({}, quota) == num_own
    quota.write_text("max 100000\n")
    assert count_cores({}, quota) == num_own
    quota.write_text("100000 100000\n")
    assert count_cores({}, quota) == 1
    assert count_cores({"LOCAL_WORLD_SIZE": str(num_own + 1)}, tmp_path / "none") == 1


JOB = FrameRequest("v.mp4", views=(FrameView((0,)),), size_px=2)


def rest(job):
    """A tenth of a second of decoding."""
    time.sleep(0.1)
    return np.zeros((1, 1, 1, 1, 3), np.uint8)


def test_a_pool_grows_while_its_consumer_is_faster_and_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(decode_pool, "count_cores", lambda: 4)
    monkeypatch.setattr(decode_pool, "FIRST_LOOK_SECONDS", 0.05)
    with DecodePool("auto", decode=rest) as pool:
        assert pool.num_workers == 1
        seen = []
        for _ in pool.run([JOB] * 16):
            pool.adapt(0.05, num_work_threads=0)
            seen.append(pool.num_workers)
        assert seen == [3] * 16
        assert 1 < len(pool.process_ids) <= 3
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if "auto" in line]
    assert len(lines) == 1
    assert lines[0].startswith("decoding by 3 of 4 cores (backbone.num_decode_workers = auto)")


def test_a_pool_does_not_grow_in_its_first_seconds():
    with DecodePool("auto", decode=rest) as pool:
        for _ in pool.run([JOB] * 2):
            pool.adapt(1e-6, num_work_threads=0)
            pool.adapt(None, num_work_threads=0)
        assert pool.num_workers == 1


def test_a_pool_of_a_given_size_does_not_grow():
    with DecodePool(1, decode=rest) as pool:
        for _ in pool.run([JOB] * 3):
            pool.adapt(1e-6, num_work_threads=0)
        assert pool.num_workers == 1


def test_a_store_of_auto_has_the_bytes_of_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_pool, "count_cores", lambda: 3)
    monkeypatch.setattr(decode_pool, "FIRST_LOOK_SECONDS", 0.0)
    write_clips(tmp_path / "clips", 12)
    index = index_clips(tmp_path / "clips")
    alone, _ = extract_store(tmp_path / "a", index, num_decode_workers=0, batch_size=2)
    grown, summary = extract_store(tmp_path / "b", index, batch_size=2)
    assert BackboneSettings().num_decode_workers == "auto"
    assert summary.num_decode_workers > 1
    assert read_tree(alone) == read_tree(grown)


@pytest.mark.parametrize(
    ("setting", "num_cpus", "num_backbones", "expected"),
    [("auto", 64, 8, 7), ("auto", 8, 8, 1), ("auto", 256, 4, 16), ("auto", 8, 0, 1), (3, 64, 8, 3)],
)
def test_a_cluster_shares_its_cpus_among_the_backbones(setting, num_cpus, num_backbones, expected):
    settings = BackboneSettings(num_decode_workers=setting)
    cluster = _Cluster(None, lambda: None, None, range, settings, None)  # type: ignore[arg-type]
    assert cluster._count_decoders(num_cpus, num_backbones) == expected
