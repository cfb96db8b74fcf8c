"""Many heads in one pass over the maps, against the same trainings one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.measure import peak_mib
from benchmarks.train_stages import PROCESS, WALL, Clock
from dsts_pipeline.base.settings import HeadSettings, TrainSettings, UdlSettings
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn import Recipe
from dsts_pipeline.learn.ablation import RunPlan, Runs

COLUMNS = "maps|clock|together, s|one by one, s|ratio|maps read|peak MiB, both"


class CountingFeed(FeatureFeed):
    """Counts the maps that it serves."""

    num_read = 0

    def batches(self, order):  # type: ignore[no-untyped-def]
        """See `FeatureFeed.batches`."""
        for batch in super().batches(order):
            self.num_read += len(batch)
            yield batch


def plan_variants(num_variants: int, batch_size: int, width: int) -> list[RunPlan]:
    """One epoch each of heads of 2, 4, ... neurons, the first half by UDL."""
    train = TrainSettings(num_epochs=1, batch_size=batch_size, heldout_fraction=0.0, data_seed=0)
    plans = []
    for number in range(num_variants):
        head = HeadSettings(width=width, num_neurons=2 * (number + 1), take_over_classifier=False)
        recipe = Recipe(train, UdlSettings(enabled=2 * number < num_variants))
        plans.append(RunPlan(f"variant {number}", "dsts", head, recipe))
    return plans


def train(plans: Sequence[RunPlan], store: FeatureStore, feed: FeatureFeed, device: str) -> None:
    """Train all of `plans` in one pass; what they leave is removed."""
    sizes = store.map_shape[0], len(store.class_names)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = Runs(root / "runs", root / "checkpoints", store.fingerprint, sizes, None, {})
        runs.train(plans, feed, torch.device(device))


def add_comparison(
    table: Table, store: FeatureStore, *, num_variants: int, batch: int, device: str
) -> None:
    """Rows for preloaded maps and for maps from the shards, one round after a warm-up each."""
    plans = plan_variants(num_variants, batch, min(32, store.map_shape[0]))
    shape, chip = "x".join(map(str, store.map_shape)), torch.device(device)
    for name, preload_bytes in (("memory", 2**40), ("shards", 0)):
        feed = CountingFeed(
            store,
            device=device,
            preload_bytes=preload_bytes,
            device_preload_bytes=preload_bytes,
        )
        train(plans[:1], store, feed, device)

        def one_by_one(feed: FeatureFeed = feed) -> None:
            for plan in plans:
                train([plan], store, feed, device)

        found = []
        for run in (lambda feed=feed: train(plans, store, feed, device), one_by_one):
            feed.num_read, clock = 0, Clock()
            peak = peak_mib(run, chip, warm_up=False)
            found.append((clock.lap(), feed.num_read, peak))
        (together, read, peak), (alone, read_alone, peak_alone) = found
        for clock_number, label in ((WALL, "wall"), (PROCESS, "process")):
            table.add_row(
                f"{shape}, from {name}",
                label,
                f"{together[clock_number]:.1f}",
                f"{alone[clock_number]:.1f}",
                f"{together[clock_number] / alone[clock_number]:.2f}",
                f"{read} / {read_alone}",
                f"{peak:.0f} / {peak_alone:.0f}",
            )
