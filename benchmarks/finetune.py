"""Cost of end-to-end steps: `python -m benchmarks.finetune [--backbone tpn_slowonly_r50]`.

Time: plain steps and UDL both ways, side by side, as ratios to the plain step of the same round.
Memory: each way in a forked process of its own, the peak of its resident memory beyond what it held
before its first step (Linux only). Frames are noise, weights random: neither matters to the cost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import status_kib
from dsts_pipeline.base.settings import TrainSettings, UdlSettings
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn.end_to_end import EndToEnd, compute_twice, stages_of
from dsts_pipeline.learn.finetune import JointObjective
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.steps import Stepper, downstream_of, upstream_of

GOAL = 1.5  # UDL over plain
RECOMPUTED = ", recomputed"
Steps = dict[str, Callable[[], object]]


def build(arguments: argparse.Namespace) -> EndToEnd:
    """The backbone with a DSTS head on its map."""
    backbone = build_backbone(
        arguments.backbone,
        weights="random",
        num_frames=arguments.frames,
        size_px=arguments.size_px,
    )
    head = DSTSHead.paper(
        backbone.map_shape[0],
        48,
        width=arguments.width,
        impulse="standardized",
        impulse_spread=20.0,
        routing_gradient=arguments.estimator,
        layer_residual=True,
    )
    return EndToEnd(backbone, head, frozen_stages=arguments.frozen_stages)


def set_recompute(model: EndToEnd, *, on: bool) -> None:
    """Switch activation checkpointing of all stages."""
    stages = stages_of(model.root).values()
    for stage in stages:
        stage.__dict__.pop("forward", None)
    if on:
        compute_twice(stages)


def steps_of(arguments: argparse.Namespace, model: EndToEnd) -> Steps:
    """A step of each way, at a learning rate too small to change anything."""

    def optimizer(parameters: dict) -> ScheduledOptimizer:
        how = TrainSettings(optimizer="sgd", weight_decay=0.0, schedule="constant")
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, 1e-9), how)

    def batch(first_row: int) -> FeatureBatch:
        side = model.backbone.size_px
        shape = (arguments.batch, model.backbone.num_frames, side, side, 3)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8)
        labels = torch.randint(0, 48, (arguments.batch,))
        return FeatureBatch(frames, labels, torch.arange(arguments.batch) + first_row)

    train, val = batch(0), batch(1000)
    model.train()
    own = optimizer(upstream_of(model)), optimizer(downstream_of(model)), UdlSettings()
    head = Stepper(JointObjective(model, inner_step="head"), *own)
    both = Stepper(JointObjective(model, inner_step="all"), *own)
    return {
        "plain": lambda: head.plain_step(train),
        "UDL, head": lambda: head.udl_step(train, val, inner_lr=0.01),
        "UDL, all": lambda: both.udl_step(train, val, inner_lr=0.01),
    }


def run(model: EndToEnd, steps: Steps, name: str) -> None:
    """One step of the way `name`, which may end with RECOMPUTED."""
    set_recompute(model, on=name.endswith(RECOMPUTED))
    steps[name.removesuffix(RECOMPUTED)]()


def measure_times(model: EndToEnd, steps: Steps, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by way; CPU time on one thread, which other work hardly lengthens."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    ways = [name + suffix for suffix in ("", RECOMPUTED) for name in steps]
    run(model, steps, ways[0])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name in ways:
            start = clock()
            run(model, steps, name)
            times[name].append(clock() - start)
    return times


def measure_peak(model: EndToEnd, steps: Steps, name: str) -> float:
    """MiB of a step in a process of its own, beyond what it held before."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def measure() -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = status_kib("VmRSS")
        run(model, steps, name)
        send.send((status_kib("VmHWM") - before) / 2**10)

    child = context.Process(target=measure)
    child.start()
    peak = receive.recv()
    child.join()
    return peak


def print_table(arguments: argparse.Namespace, times: dict, peaks: dict) -> None:
    """Seconds, ratio to plain, peak memory, ratio to the same way without recomputing."""
    title = (
        f"{arguments.backbone}, {arguments.frames or 'its'} frames of {arguments.size_px or 'its'} "
        f"px, batch {arguments.batch}, {arguments.estimator}, frozen stages "
        f"{arguments.frozen_stages}, {torch.get_num_threads()} thread(s)"
    )
    table = Table(title=title, title_justify="left")
    for column in ("step", "seconds", "time / plain", "peak MiB", "memory / kept", "time / kept"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, rounds in times.items():
        kept = name.removesuffix(RECOMPUTED)
        plain = "plain" + name.removeprefix(kept)

        def ratio(against: str, rounds: list[float] = rounds) -> float:
            pairs = zip(rounds, times[against], strict=True)
            return statistics.median(first / second for first, second in pairs)

        table.add_row(
            name,
            f"{statistics.median(rounds):.2f}",
            f"{ratio(plain):.2f}",
            f"{peaks[name]:.0f}",
            f"{peaks[name] / peaks[kept]:.2f}",
            f"{ratio(kept):.2f}",
        )
    Console(width=120).print(table)
    print(f"goal: UDL over plain <= {GOAL} where the simulated step leaves the backbone alone")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="stick_r18")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--size-px", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--estimator", default="selected", choices=("selected", "dense"))
    parser.add_argument("--frozen-stages", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = build(arguments)
    steps = steps_of(arguments, model)
    ways = [name + suffix for suffix in ("", RECOMPUTED) for name in steps]
    # Before any step: what a process has allocated once, it keeps.
    peaks = {name: measure_peak(model, steps, name) for name in ways}
    print_table(arguments, measure_times(model, steps, arguments.rounds), peaks)


if __name__ == "__main__":
    main()
