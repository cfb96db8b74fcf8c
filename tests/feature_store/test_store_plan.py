"""Fingerprints and shard sizes."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.feature_store import choose_samples_per_shard
from tests.feature_store.small_store import make_plan

MAP_BYTES = 2048 * 8 * 7 * 7 * 2


def test_same_plan_same_fingerprint():
    assert make_plan().fingerprint == make_plan().fingerprint
    assert len(make_plan().fingerprint) == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint_parts": {"backbone": "none", "weights": "1" * 64}},
        {"clips": [("clip-0", 0, "train")]},
        {"clips": [("clip-0", 1, "train")]},
        {"clips": [("clip-0", 0, "test")]},
        {"clips": [("clip-0", 0, "train", 1)]},
        {"class_names": ("a", "b", "d")},
        {"map_shape": (3, 4, 2, 4)},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "int8"},
        {"codec": "zstd"},
        {"codec": "zstd", "zstd_level": 3},
        {"on_overflow": "fail"},
        {"on_overflow": "saturate"},
        {"frames": [[0]] * 23},
        {"frames": [[1]] * 23},
        {"frames": [[0, 1]] * 23},
        {"samples_per_shard": 6},
        {"attributes": (("Back",), ("Forward",), ("Reverse",))},
    ],
)
def test_whatever_decides_bytes_changes_the_fingerprint(changes):
    others = [make_plan().fingerprint, make_plan(clips=[("clip-9", 0, "train")]).fingerprint]
    assert make_plan(**changes).fingerprint not in others


@pytest.mark.parametrize(
    "changes",
    [
        {"zstd_level": 3},  # without zstd
        {"on_overflow": "error"},
        {"frames": None},
    ],
)
def test_what_decides_no_byte_leaves_the_fingerprint_alone(changes):
    assert make_plan(**changes).fingerprint == make_plan().fingerprint


def test_all_these_fingerprints_differ():
    changes = [
        {"dtype": dtype, "codec": codec, "on_overflow": on_overflow, "frames": frames}
        for dtype in ("float16", "bfloat16", "float32", "int8")
        for codec in ("none", "zstd")
        for on_overflow in ("error", "fail", "saturate")
        for frames in (None, [[0]] * 23, [[0, -1]] * 22 + [[0, 5]])
    ]
    assert len({make_plan(**change).fingerprint for change in changes}) == len(changes)


def test_frames_of_any_kind_of_sequence_are_the_same():
    lists = [[position, position + 1] for position in range(23)]
    plan = make_plan(frames=lists)
    assert make_plan(frames=np.array(lists)).fingerprint == plan.fingerprint
    assert plan.frame_table.tolist() == lists


def test_views_of_one_clip_are_samples_of_their_own():
    plan = make_plan(clips=[("clip-0", 0, "train"), ("clip-0", 0, "train", 1)])
    assert plan.clip_table["samples"]["views"] == [0, 1]


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "no clip to store"),
        ([("x", 3, "train")], "clip x: label 3, expected 0 to 2"),
        ([("x", -1, "train")], "clip x: label -1"),
        ([("x", 0, "train"), ("x", 1, "test")], "clip x: listed twice"),
    ],
)
def test_bad_clips_are_named(clips, message):
    with pytest.raises(DataError, match=message):
        make_plan(clips=clips)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "int7"},
        {"map_shape": (3, 4)},
        {"samples_per_shard": 0},
        {"codec": "gzip"},
        {"zstd_level": 0},
        {"on_overflow": "ignore"},
        {"frames": [[0]]},
    ],
)
def test_bad_geometry_is_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        make_plan(**changes)


@pytest.mark.parametrize(
    ("num_clips", "sample_bytes", "samples", "shards"),
    [
        (3600, 32 * 1024, 112, 33),  # the embedded data set
        (300, 32 * 1024, 16, 19),
        (10, 32 * 1024, 16, 1),
        (17_000, MAP_BYTES, 80, 213),  # Diving48, 122 MiB a shard
        (193_690, MAP_BYTES, 80, 2422),  # Something-Something V2
        (50, 10**9, 1, 50),
    ],
)
def test_shard_size_rule(num_clips, sample_bytes, samples, shards):
    chosen = choose_samples_per_shard(
        num_clips, sample_bytes, shard_bytes=128 * 2**20, min_shards=32
    )
    assert (chosen, -(-num_clips // chosen)) == (samples, shards)
