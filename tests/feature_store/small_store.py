"""A small store whose maps follow from their position, and tools to compare stores.

Run as a program it writes (or goes on writing) that store, for tests that kill it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dsts_pipeline.feature_store import StorePlan, StoreWriter

MAP_SHAPE = (3, 2, 4, 4)
FAILURES = {6: "can't be decoded: no frames", 21: "can't be decoded: truncated"}
PROVENANCE = {"command": "extract", "version": "0"}


def make_plan(num_clips: int = 23, **changes) -> StorePlan:
    """Five maps a shard, so that the last of five shards is not full."""
    clips = [
        (f"clip-{position}", position % 3, "train" if position < 15 else "test")
        for position in range(num_clips)
    ]
    settings = {
        "fingerprint_parts": {"backbone": "none", "weights": "0" * 64},
        "clips": clips,
        "class_names": ("a", "b", "c"),
        "map_shape": MAP_SHAPE,
        "samples_per_shard": 5,
        "attribute_names": ("takeoff",),
        "attributes": (("Back",), ("Forward",), ("Inward",)),
    }
    return StorePlan(**(settings | changes))


def make_map(plan: StorePlan, position: int) -> np.ndarray:
    """The float32 map of one clip, `[C, T, H, W]`."""
    return np.random.default_rng(position).standard_normal(plan.map_shape).astype(np.float32)


def make_maps(plan: StorePlan, positions) -> np.ndarray:
    """The float32 maps of some clips, `[n, C, T, H, W]`."""
    return np.stack([make_map(plan, position) for position in positions])


def write_shard(writer: StoreWriter, shard: int, failures: dict[int, str] = FAILURES) -> None:
    """Write one shard, failed clips given as maps of zeros as a careless caller would."""
    positions = writer.shard_clips(shard)
    here = {position: reason for position, reason in failures.items() if position in positions}
    maps = make_maps(writer.plan, positions)
    for position in here:
        maps[position - positions.start] = 0
    writer.write_shard(shard, maps, here)


def write_store(root: Path, plan: StorePlan | None = None) -> Path:
    """Write all that is pending and finish; the store's path."""
    with StoreWriter(root, plan or make_plan()) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard)
        return writer.finish(PROVENANCE).parent


def read_tree(store: Path) -> dict[str, bytes]:
    """Content of every file of a store, but for the lock (always empty)."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != ".writer.lock"
    }


if __name__ == "__main__":
    kill_plan = make_plan(num_clips=100, map_shape=(64, 8, 4, 4))
    print("ready", flush=True)
    write_store(Path(sys.argv[1]), kill_plan)
