"""What a GPU has to show, in under five minutes: `python -m benchmarks.gpu`.

Values first: iterations captured as CUDA graphs against the same ones made step by step, in
float64, and no host read in either. Then times: plain steps and UDL iterations of two sizes, in the
form that reads the routing back (a product per neuron, as before 0.2), in the fixed form, and
captured, in float32 and with TF32; test time with ten neurons over one; and how long a step waits
for its batches, from the device, from memory and from shards. No new part begins after `--budget`
seconds. `--device cpu --small` is a dry run of everything but the graphs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.launches import count_launches, describe
from benchmarks.measure import wait
from benchmarks.train_stages import write_random_store
from benchmarks.udl import new_stepper
from dsts_pipeline.feed import FeatureBatch, FeatureFeed
from dsts_pipeline.head import DSTSHead, compile_head
from dsts_pipeline.head.neurons import force_form
from dsts_pipeline.learn.graphs import NUM_WARM_UPS, IterationGraphs
from dsts_pipeline.learn.steps import Stepper

SIZES = {
    "128x8x4x4, width 32": ((128, 8, 4, 4), 32),
    "2048x8x7x7, width 164": ((2048, 8, 7, 7), 164),
}
SMALL = {"16x2x3x3, width 8": ((16, 2, 3, 3), 8)}
EXPECTED_MS = "expected on an H200: 2 and 7 ms at width 32, 4 to 5 and 20 ms at width 164"


def stepper_for(
    shape: tuple[int, ...],
    width: int,
    device: torch.device,
    *,
    estimator: Any = "selected",
    graphs: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Stepper:
    """A training's stepper for a default head on maps of `shape`; `options` as of `new_stepper`."""
    torch.manual_seed(0)
    head = DSTSHead(shape[0], 48, width=width, routing_gradient=estimator).to(device, dtype)
    with torch.no_grad():  # it starts at zero, where nothing reaches the neurons
        torch.nn.init.normal_(head.project_out.weight, std=0.05)
    return new_stepper(
        head,
        generator=torch.Generator(device).manual_seed(1),
        graphs=IterationGraphs(device) if graphs else None,
        **options,
    )


def new_batch(
    shape: tuple[int, ...], size: int, first: int, device: torch.device, dtype: torch.dtype
) -> FeatureBatch:
    """Random maps; the same for the same `first`."""
    generator = torch.Generator(device).manual_seed(first)
    maps = torch.randn(size, *shape, device=device, dtype=dtype, generator=generator)
    labels = torch.randint(0, 48, (size,), device=device, generator=generator)
    return FeatureBatch(maps, labels, torch.arange(size) + first)


def iteration(stepper: Stepper, kind: str, batches: list[FeatureBatch]) -> Callable[[], object]:
    """A plain step or a UDL iteration on the same batches each time."""
    if kind == "plain":
        return lambda: stepper.plain_step(batches[0])
    return lambda: stepper.udl_step(batches[0], batches[1], inner_lr=0.01)


def check_values(device: torch.device) -> None:
    """Six iterations, captured against made anew; a host read of them is an error."""
    shape = (16, 4, 4, 4)
    for kind in ("plain", "udl"):
        for estimator in ("selected", "dense"):
            states = []
            for graphs in (False, True)[: 2 if device.type == "cuda" else 1]:
                options = {"estimator": estimator, "dtype": torch.float64, "rate": 1e-3}
                stepper = stepper_for(shape, 8, device, graphs=graphs, **options)
                for number in range(NUM_WARM_UPS + 3):
                    pair = [
                        new_batch(shape, 8, 16 * number + first, device, torch.float64)
                        for first in (0, 8)
                    ]
                    if device.type == "cuda" and not graphs:
                        torch.cuda.set_sync_debug_mode("error" if number else "default")
                    iteration(stepper, kind, pair)()
                    if device.type == "cuda":
                        torch.cuda.set_sync_debug_mode("default")
                if stepper.graphs is not None and stepper.graphs.is_abandoned:
                    print(f"{kind}, {estimator}: NOT CAPTURED", flush=True)
                states.append(copy.deepcopy(stepper.objective.head.state_dict()))
            worst = max(
                float((value - states[-1][name]).abs().max()) for name, value in states[0].items()
            )
            verdict = f"{worst:.1e}, {'equal' if worst < 1e-8 else 'WRONG'}"
            if len(states) == 1:
                verdict = "not compared, there is no GPU"
            print(f"{kind}, {estimator}: captured against anew: {verdict}", flush=True)


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of three rounds, after a warm-up that includes the capture."""
    for _ in range(NUM_WARM_UPS + 2):
        run()
    rounds = []
    for _ in range(3):
        wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait(device)
        rounds.append(1e3 * (time.perf_counter() - start) / repeats)
    return statistics.median(rounds)


def measure_iterations(
    table: Table, name: str, estimator: str, arguments: argparse.Namespace
) -> None:
    """Rows of one size: reading back, fixed, captured; TF32 where the size has products for it."""
    shape, width = (SMALL if arguments.small else SIZES)[name]
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    batches = [new_batch(shape, arguments.batch, n, device, torch.float32) for n in (0, 1000)]
    for kind in ("plain", "udl"):
        cells = []
        for form, graphs, precision in (
            ("grouped", False, "highest"),
            ("columns", False, "highest"),
            ("columns", True, "highest"),
            ("columns", True, "high"),
        ):
            if graphs and not on_gpu:
                cells.append("")
                continue
            options = {"estimator": estimator, "graphs": graphs, "precision": precision}
            stepper = stepper_for(shape, width, device, **options)
            with force_form(form):
                run = iteration(stepper, kind, batches)
                cells.append(f"{milliseconds(run, device, 10 if on_gpu else 1):.2f}")
                if form == "columns" and not graphs:
                    counts = describe(count_launches(run))
            del stepper
        peak = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if on_gpu else ""
        table.add_row(f"{name}, {kind}, {estimator}", *cells, counts, peak)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()


def measure_test_time(arguments: argparse.Namespace) -> None:
    """The compiled head with ten neurons over one."""
    device = torch.device(arguments.device)
    for name, (shape, width) in (SMALL if arguments.small else SIZES).items():
        for size in (1, arguments.batch):
            maps = new_batch(shape, size, 0, device, torch.float32).maps
            times = {}
            for num_neurons in (10, 1):
                torch.manual_seed(0)
                head = DSTSHead(shape[0], 48, num_neurons=num_neurons, width=width).to(device)
                with torch.no_grad():
                    for layer in head.dsts_layers():
                        layer.gate_logits.normal_()
                compiled = compile_head(head.eval())
                times[num_neurons] = milliseconds(partial(compiled, maps), device, 20)
            ratio = times[10] / times[1]
            print(
                f"test time, {name}, batch {size}: N = 10 {times[10]:.2f} ms, "
                f"N = 1 {times[1]:.2f} ms, ratio {ratio:.2f} (<= 1.15)",
                flush=True,
            )


def measure_waiting(arguments: argparse.Namespace) -> None:
    """Share of a UDL epoch's time that its steps wait for batches of large maps."""
    device = torch.device(arguments.device)
    shape, width = next(reversed((SMALL if arguments.small else SIZES).values()))
    with tempfile.TemporaryDirectory() as folder:
        store = write_random_store(Path(folder), shape, 512 if not arguments.small else 64)
        for name, options in (
            ("device", {}),
            ("memory", {"device_preload_bytes": 0}),
            ("shards", {"device_preload_bytes": 0, "preload_bytes": 0}),
        ):
            feed = FeatureFeed(store, device=device, **options)  # type: ignore[arg-type]
            stepper = stepper_for(shape, width, device, graphs=device.type == "cuda")
            order = [feed.rows[n : n + arguments.batch] for n in range(0, len(feed.rows), 32)]
            order = [rows for rows in order if len(rows) == arguments.batch]
            pairs = list(zip(order[::2], order[1::2], strict=False))
            shares = []
            for _ in range(3):  # the first one captures
                waited, start = 0.0, time.perf_counter()
                batches = iter(feed.pairs(pairs))
                while True:
                    asked = time.perf_counter()
                    pair = next(batches, None)
                    waited += time.perf_counter() - asked
                    if pair is None:
                        break
                    iteration(stepper, "udl", list(pair))()
                wait(device)
                shares.append(waited / (time.perf_counter() - start))
            print(f"waiting for batches from {name}: {min(shares[1:]):.1%} (< 2 %)", flush=True)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", type=float, default=240.0, help="seconds")
    parser.add_argument("--small", action="store_true", help="a size for a dry run")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured (--device cpu --small for a dry run)")
        return
    start = time.perf_counter()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; {EXPECTED_MS}", flush=True)
    with force_form("columns"):
        check_values(device)
        measure_test_time(arguments)
        measure_waiting(arguments)
    table = Table(title=f"ms an iteration, batch {arguments.batch}", title_justify="left")
    for column in ("what", "reads back", "fixed", "captured", "captured, TF32", "launches", "MiB"):
        table.add_column(column)
    for size in SMALL if arguments.small else SIZES:
        for estimator in ("selected", "dense"):
            if time.perf_counter() - start > arguments.budget:
                print(f"{size}, {estimator}: left out, the time is up", flush=True)
                continue
            measure_iterations(table, size, estimator, arguments)
    Console(width=180).print(table)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
