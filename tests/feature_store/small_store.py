"""A small store whose maps follow from their position, and tools to compare stores.

Run as a program it writes (or goes on writing) a larger one, for tests that kill it, and prints a
line when it starts, per shard and at the end. Arguments: the folder of stores; JSON of
`{"plan": changes, "seconds_per_shard": s}`. It begins when it reads a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
        for shard in writer.claims():
            write_shard(writer, shard)
        return writer.finish(PROVENANCE).parent


def read_tree(store: Path) -> dict[str, bytes]:
    """Content of every file of a store, but for the lock (always empty)."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != ".writer.lock"
    }


LARGER = {"num_clips": 300, "map_shape": (64, 8, 4, 4)}  # 60 shards of 80 kB


def start_writers(
    num_writers: int, root: Path, *, seconds_per_shard: float = 0.0, **changes
) -> list[subprocess.Popen]:
    """This file as processes that begin at the same moment to write the larger store."""
    settings = {"plan": changes, "seconds_per_shard": seconds_per_shard}
    writers = [
        subprocess.Popen(
            [sys.executable, __file__, str(root), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for _ in range(num_writers)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("begin\n")
        writer.stdin.flush()
    return writers


def start_writer(root: Path, **settings) -> subprocess.Popen:
    """One of them."""
    return start_writers(1, root, **settings)[0]


def _write_slowly(root: Path, plan: StorePlan, seconds_per_shard: float) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    with StoreWriter(root, plan) as writer:
        for shard in writer.claims():
            print("claimed", shard, flush=True)
            time.sleep(seconds_per_shard)
            write_shard(writer, shard)
        writer.finish(PROVENANCE)
    print("finished", flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    _write_slowly(
        Path(sys.argv[1]), make_plan(**(LARGER | given["plan"])), given["seconds_per_shard"]
    )
