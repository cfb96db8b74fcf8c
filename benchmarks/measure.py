"""Timing of several ways to do one thing, side by side, and the memory that each takes.

Every round runs each way once, in turn; the figures are medians over rounds and medians of the
ratios within a round, so that a machine that slows down slows all of them. On one CPU thread the
clock is the process's CPU time, which other work on the machine hardly lengthens; else wall time.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Measured:
    """Per way: median milliseconds, peak MiB beyond what was held before, times of all rounds."""

    milliseconds: dict[str, float]
    peak_mib: dict[str, float]
    rounds: dict[str, list[float]]

    def ratio(self, name: str, against: str) -> float:
        """Median over rounds of the time of `name` over that of `against`."""
        pairs = zip(self.rounds[name], self.rounds[against], strict=True)
        return statistics.median(first / second for first, second in pairs)


def measure(
    ways: Mapping[str, Callable[[], object]], *, num_rounds: int, device: torch.device
) -> Measured:
    """Run every way `num_rounds` times, after one run each to warm up."""
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    peaks = {name: peak_mib(run, device) for name, run in ways.items()}
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, run in ways.items():
            start = clock()
            run()
            wait(device)
            rounds[name].append(1e3 * (clock() - start))
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    return Measured(medians, peaks, rounds)


def print_table(title: str, rows: list[tuple[str, str, str, float, float, str]]) -> None:
    """Print rows of (what, its time, against, ratio, goal, memory); a missed goal is marked."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "ms", "against", "ratio", "goal", "peak MiB"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    for what, milliseconds, against, ratio, goal, memory in rows:
        mark = "met" if ratio <= goal else "missed"
        table.add_row(what, milliseconds, against, f"{ratio:.2f}", f"<= {goal:g} {mark}", memory)
    Console(width=120).print(table)


def wait(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(run: Callable[[], object], device: torch.device, *, warm_up: bool = True) -> float:
    """Memory that one run takes at its peak, after a first run to warm up unless told not to."""
    if warm_up:
        run()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = status_kib("VmRSS")
        run()
        return (status_kib("VmHWM") - before) / 2**10
    except (OSError, AttributeError):
        return float("nan")


def status_kib(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))
