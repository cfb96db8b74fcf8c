"""Named random streams."""

from __future__ import annotations

from dsts_pipeline.base.provenance import derive_seed


def test_same_name_same_stream():
    assert derive_seed(1, "train", 3) == derive_seed(1, "train", 3)


def test_streams_differ_by_seed_name_and_number():
    streams = {derive_seed(*key) for key in [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1,)]}
    assert len(streams) == 5


def test_seeds_fit_every_generator():
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(100))
