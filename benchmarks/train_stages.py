"""What an iteration of a training on cached maps is made of: reading, moving, the step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import peak_mib, wait
from benchmarks.udl import new_stepper
from dsts_pipeline.feature_store import FeatureStore, StorePlan, StoreWriter, open_store
from dsts_pipeline.feed import FeatureBatch, FeatureFeed, udl_pairs
from dsts_pipeline.head import DSTSHead

NUM_CLASSES = 48
WALL, PROCESS = 0, 1  # clocks
STAGES = "read", "transfer", "step"
Pair = tuple[FeatureBatch, FeatureBatch]


@dataclass(frozen=True)
class Laps:
    """Seconds of the stages of some iterations, on one clock."""

    read: float
    transfer: float
    step: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.read + self.transfer + self.step

    @property
    def data_share(self) -> float:
        """Time that waits for data, over that of the step."""
        return (self.read + self.transfer) / self.step


@dataclass(frozen=True)
class Rounds:
    """Per round, on the wall's clock and on the process's: the loop, the step alone, reading alone.

    `num_clips` training clips a round; `peak` is in MiB beyond what was held before.
    """

    loop: list[tuple[Laps, Laps]]
    pure_step: list[tuple[float, float]]
    pure_read: list[tuple[float, float]]
    num_clips: int
    peak: float

    def median(self, of: Callable[[int], float]) -> float:
        """Median over rounds of a figure of each."""
        return statistics.median(of(number) for number in range(len(self.loop)))


class Clock:
    """Two clocks at once: the wall's and the process's."""

    def __init__(self) -> None:
        self.lap()

    def lap(self) -> np.ndarray:
        """Seconds since the last lap, `[wall, process]`."""
        now = np.array([time.perf_counter(), time.process_time()])
        passed = now - getattr(self, "_last", now)
        self._last = now
        return passed


def write_random_store(root: Path, map_shape: tuple[int, ...], num_maps: int) -> FeatureStore:
    """float16 maps as a ReLU leaves them, all of the training split."""
    clips = [(f"clip{number}", number % NUM_CLASSES, "train") for number in range(num_maps)]
    names = tuple(map(str, range(NUM_CLASSES)))
    plan = StorePlan(
        {"import": {"benchmark": list(map_shape)}},
        clips=clips,
        class_names=names,
        map_shape=map_shape,
        samples_per_shard=16,
    )
    generator = np.random.default_rng(0)
    with StoreWriter(root, plan) as writer:
        for shard in writer.claims():
            size = len(writer.shard_clips(shard)), *map_shape
            maps = generator.standard_normal(size, dtype=np.float32).clip(min=0)
            writer.write_shard(shard, maps)
        return open_store(writer.finish({}).parent)


def house_head(channels: int) -> DSTSHead:
    """The head of the default settings."""
    torch.manual_seed(0)
    return DSTSHead(channels, NUM_CLASSES, width=min(32, channels))


class Iterations:
    """Iterations of UDL over a feed; each takes a pair of batches of `batch` clips."""

    def __init__(self, feed: FeatureFeed, batch: int, num_steps: int, device: torch.device) -> None:
        self.feed, self.device = feed, device
        head = house_head(feed.map_shape[0]).to(device)
        self.stepper = new_stepper(head, "exact")
        pairs = udl_pairs(feed.rows, batch, seed=0, epoch=0, drop_last=True)
        self.order = [pairs[number % len(pairs)] for number in range(num_steps)]
        self.num_clips = num_steps * batch
        self.resident = tuple(part.to(device) for part in next(self.pairs()))

    def pairs(self) -> Iterator[Pair]:
        """From the store or memory."""
        return self.feed.pairs(self.order)

    def step(self, pair: Pair) -> None:
        """UDL's three steps."""
        self.stepper.udl_step(*pair, inner_lr=0.01)
        wait(self.device)

    def loop(self) -> tuple[Laps, Laps]:
        """Read, move, step, as training does; on both clocks."""
        times, clock, pairs = dict.fromkeys(STAGES, np.zeros(2)), Clock(), self.pairs()
        for _ in self.order:
            pair = next(pairs)
            times["read"] = times["read"] + clock.lap()
            moved = pair[0].to(self.device), pair[1].to(self.device)
            times["transfer"] = times["transfer"] + clock.lap()
            self.step(moved)
            times["step"] = times["step"] + clock.lap()
        wall, process = (Laps(**{n: float(t[k]) for n, t in times.items()}) for k in (0, 1))
        return wall, process

    def pure_step(self) -> tuple[float, float]:
        """As many steps on one pair that lies on the device."""
        clock = Clock()
        for _ in self.order:
            self.step(self.resident)
        return tuple(clock.lap().tolist())

    def pure_read(self) -> tuple[float, float]:
        """The same batches, read and moved and dropped."""
        clock = Clock()
        for train, val in self.pairs():
            train.to(self.device), val.to(self.device)
        wait(self.device)
        return tuple(clock.lap().tolist())

    def measure(self, num_rounds: int) -> Rounds:
        """All three in turn."""
        peak = peak_mib(self.loop, self.device)
        found = [(self.loop(), self.pure_step(), self.pure_read()) for _ in range(num_rounds)]
        loops, steps, reads = (list(column) for column in zip(*found, strict=True))
        return Rounds(loops, steps, reads, self.num_clips, peak)
