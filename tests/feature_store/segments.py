"""A store of clips in two segments, and a hand-made one whose maps are the concatenation of those.

Training clips have two augmentations, test clips two crops, each of both segments.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsts_pipeline.feature_store import FeatureStore, StorePlan, StoreWriter, open_store

SEGMENTS = 2
SHAPE = (6, 2, 3, 4)
JOINED_SHAPE = (6, 4, 3, 4)
CLASSES = ("a", "b", "c", "d")
MADE_OF = {"views": {"train": 2, "test_clips": 1, "test_crops": 2, "segments": SEGMENTS}}
LOST = 10  # the map of the clip c2, its second augmentation, first segment


def list_clips(num_clips: int, num_views: int) -> list[tuple[str, int, str, int]]:
    """Rows clip by clip; two of three are of train."""
    clips = [(f"c{n}", n % 4, "test" if n % 3 == 2 else "train") for n in range(num_clips)]
    return [(*clip, view) for clip in clips for view in range(num_views)]


def write(root: Path, plan: StorePlan, maps: np.ndarray, failures: dict[int, str]) -> Path:
    """The store of float maps `[n, C, T, H, W]`."""
    with StoreWriter(root, plan) as writer:
        for shard in writer.claims():
            places = writer.shard_clips(shard)
            here = {place: reason for place, reason in failures.items() if place in places}
            writer.write_shard(shard, maps[places.start : places.stop], here)
        return writer.finish({"command": "tests"}).parent


def draw_maps(num_maps: int, seed: int = 0) -> np.ndarray:
    """Maps of very different sizes, so that int8 has other scales for each."""
    generator = np.random.default_rng(seed)
    maps = generator.standard_normal((num_maps, *SHAPE)).astype(np.float32)
    return maps * generator.uniform(0.1, 9, (num_maps, SHAPE[0], 1, 1, 1)).astype(np.float32)


def open_segments(
    root: Path,
    num_clips: int = 12,
    *,
    dtype: str = "float16",
    failures: dict[int, str] | None = None,
    made_of: dict | None = None,
    num_threads: int = 1,
    groups: list[str] | None = None,
    maps: np.ndarray | None = None,
    **options,
) -> FeatureStore:
    """The store of segments, not joined."""
    plan = StorePlan(
        MADE_OF if made_of is None else made_of,
        clips=list_clips(num_clips, 4),
        class_names=CLASSES,
        map_shape=SHAPE,
        dtype=dtype,
        samples_per_shard=7,
        frames=np.arange(4 * num_clips * 3).reshape(-1, 3),
        groups=None if groups is None else [group for group in groups for _ in range(4)],
        **options,
    )
    drawn = draw_maps(4 * num_clips) if maps is None else maps
    return open_store(write(root, plan, drawn, failures or {}), num_threads=num_threads)


def open_by_hand(root: Path, store: FeatureStore, lost: tuple[int, ...] = ()) -> FeatureStore:
    """A float32 store of the maps that `store` gives, two by two concatenated along time."""
    maps = store.read(np.arange(len(store))).astype(np.float32)
    found = dict(zip(store.positions.tolist(), maps, strict=True))
    num_clips = len(store.planned["ids"]) // 4
    blank = np.zeros(SHAPE, np.float32)
    pairs = [(found.get(2 * n, blank), found.get(2 * n + 1, blank)) for n in range(2 * num_clips)]
    plan = StorePlan(
        {"by": "hand"},
        clips=list_clips(num_clips, 2),
        class_names=CLASSES,
        map_shape=JOINED_SHAPE,
        dtype="float32",
        samples_per_shard=5,
    )
    joined = np.stack([np.concatenate(pair, axis=1) for pair in pairs])
    return open_store(write(root, plan, joined, dict.fromkeys(lost, "no segment")))
