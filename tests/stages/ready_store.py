"""A run's folder in which the features are ready: train-head can start, no video was rendered."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.feature_store import StorePlan, StoreWriter
from tests.learn.small_feed import ordered_feed

CLIPS_A_SHARD = 16
# What makes a training of these maps take about a second.
QUICK = {
    "backbone__weights": "none",
    "train__num_epochs": 2,
    "train__batch_size": 8,
    "train__heldout_fraction": 0.25,
    "head__num_neurons": 2,
    "head__num_layers": 1,
    "head__width": 4,
}


def make_ready(
    folder: Path, num_train: int = 64, num_test: int = 32, groups: list[str] | None = None
) -> Path:
    """Write a store of four learnable classes and outputs/features.json; the store's path."""
    store = ordered_feed(num_train + num_test).store
    clips = [
        (f"clip-{row}", int(label), "train" if row < num_train else "test")
        for row, label in enumerate(store.labels)
    ]
    plan = StorePlan(
        {"import": {"of": "tests"}},
        clips=clips,
        class_names=store.class_names,
        map_shape=store.map_shape,
        samples_per_shard=CLIPS_A_SHARD,
        groups=groups,
    )
    with StoreWriter(folder / "stores", plan) as writer:
        for shard in writer.claims():
            places = writer.shard_clips(shard)
            writer.write_shard(shard, store.maps[places.start : places.stop])
        path = writer.finish({"command": "tests"}).parent
    manifest = read_json(path / "manifest.json")
    record = {"store": str(path), "files": manifest["files"], "shards": manifest["shards"]}
    write_json(folder / "outputs" / "features.json", record)
    return path


def damage_clips(store: Path, first: int) -> None:
    """Make every map from the clip `first` (the first one of a shard) on unreadable."""
    paths = list((store / "maps").glob("c.*"))
    damaged = [path for path in paths if int(path.name.split(".")[1]) >= first // CLIPS_A_SHARD]
    assert 0 < len(damaged) < len(paths)
    for path in damaged:
        content = bytearray(path.read_bytes())
        half = len(content) // 2
        content[:half] = bytes(byte ^ 0xFF for byte in content[:half])
        path.write_bytes(content)
