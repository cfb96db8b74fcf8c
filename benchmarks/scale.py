"""The size of Something-Something v2 on one machine: a small map for each of its clips.

Each command of a project with imported features runs as a user would type it, in a process of its
own: `import-features`, `train-head` for an epoch of a small head, `evaluate`, `report`. Printed are
seconds, clips a second and the peak of resident memory of each; the same with a tenth and a
hundredth of the clips (the least of `--rounds` runs); and how the processor's time grows from a
tenth to the whole: 10 is linear. The start-up of a process is what the line through the two small
sizes gives at no clips; it is left out of growth.

`python -m benchmarks.scale [--clips 193690] [--shape 16 2 2 2] [--rounds 3] [--set key=value]`
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
NUM_CLIPS = 193_690  # of Something-Something v2 that have labels, of which
NUM_TEST = 24_777  # are its validation split, on which papers report
NUM_CLASSES = 174
SPREAD = 0.35  # of the means of classes, so that a head errs about as often as on the real clips
CHUNK = 8192  # maps in memory at a time, so that this process stays smaller than those it measures
PARTS = 100, 10, 1  # of the clips one in so many
COMMANDS = "import-features", "train-head", "evaluate", "report"
SETTINGS = "train.num_epochs=1", "train.batch_size=256", "head.width=8"
PAGE = "outputs/report/report.html"


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds by the clock, seconds of processors, peak resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Measured:
    """A size: clips, those of the split test, what each command took, bytes of the page."""

    num_clips: int
    num_test: int
    costs: dict[str, Cost]
    page_bytes: int

    def clips_of(self, command: str) -> int:
        """How many clips a command goes through."""
        if command == "import-features":
            return self.num_clips
        return self.num_clips - self.num_test if command == "train-head" else self.num_test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=NUM_CLIPS, help="default: %(default)s")
    parser.add_argument("--shape", type=int, nargs=4, default=(16, 2, 2, 2), help="C T H W")
    parser.add_argument("--rounds", type=int, default=3, help="runs of the two small sizes")
    parser.add_argument("--out", type=Path, help="folder that keeps what is made")
    parser.add_argument("--set", action="append", default=[], help="a setting, as cli.py takes it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = chosen.out or Path(scratch)
        sizes = []
        for part in PARTS:
            runs = []
            for number in range(1 if part == 1 else chosen.rounds):
                project = root / f"one_of_{part}_run_{number}"
                print(project.name, flush=True)
                runs.append(measure(project, chosen.clips // part, chosen.shape, chosen.set))
            sizes.append(least(runs))
    print_table(sizes, chosen.shape)


def measure(
    project: Path, num_clips: int, shape: Sequence[int], settings: Sequence[str]
) -> Measured:
    """Write features into `project` and run every command there."""
    num_test = round(num_clips * NUM_TEST / NUM_CLIPS)
    project.mkdir(parents=True)
    write_features(project, num_clips, num_test, shape)
    given = [f"--params={ROOT / 'params.yaml'}"]
    given += [f"--set={setting}" for setting in (*SETTINGS, *settings)]
    source = {"import-features": ["features.h5", "--labels=labels.csv", "--name=something-like"]}
    costs = {}
    for command in COMMANDS:
        costs[command] = run([command, *source.get(command, []), *given], project)
        print(f"  {command}: {costs[command].seconds:.1f} s", flush=True)
    return Measured(num_clips, num_test, costs, (project / PAGE).stat().st_size)


def least(runs: Sequence[Measured]) -> Measured:
    """The least time and memory of each command over runs of one size."""
    costs = {
        command: Cost(
            min(one.costs[command].seconds for one in runs),
            min(one.costs[command].cpu_seconds for one in runs),
            min(one.costs[command].peak_mib for one in runs),
        )
        for command in COMMANDS
    }
    return replace(runs[0], costs=costs)


def write_features(folder: Path, num_clips: int, num_test: int, shape: Sequence[int]) -> None:
    """features.h5 and labels.csv: float16 maps, of which each class raises other channels."""
    generator = np.random.default_rng(0)
    means = SPREAD * generator.standard_normal((NUM_CLASSES, shape[0], 1, 1, 1), np.float32)
    labels = generator.permutation(np.arange(num_clips) % NUM_CLASSES)
    is_test = generator.permutation(np.arange(num_clips) < num_test)
    ids = [str(number + 1) for number in range(num_clips)]
    with h5py.File(folder / "features.h5", "w") as file:
        file["ids"] = ids
        maps = file.create_dataset("maps", (num_clips, *shape), np.float16)
        for start in range(0, num_clips, CHUNK):
            classes = labels[start : start + CHUNK]
            noise = generator.standard_normal((len(classes), *shape), dtype=np.float32)
            maps[start : start + CHUNK] = means[classes] + noise
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "label", "split"])
        for clip, label, test in zip(ids, labels, is_test, strict=True):
            table.writerow([clip, f"class {label}", "test" if test else "train"])


def run(arguments: Sequence[str], project: Path) -> Cost:
    """Run a command of cli.py in `project`, its output below log/.

    Raises:
        SystemExit: It failed.
    """
    log = project / "log" / f"{arguments[0]}.txt"
    log.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / "cli.py", *arguments],
            cwd=project,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}:\n{log.read_text()[-2000:]}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10)


def print_table(sizes: Sequence[Measured], shape: Sequence[int]) -> None:
    """A row per size and command, the largest size with the growth of its time."""
    table = Table(title=f"maps of {'x'.join(map(str, shape))}, 1 epoch", title_justify="left")
    for column in ("command", "clips", "seconds", "CPU s", "clips/s", "peak MiB", "10 x clips"):
        table.add_column(column, justify="left" if column == "command" else "right")
    for size in sizes:
        for command in COMMANDS:
            cost = size.costs[command]
            num_clips = size.clips_of(command)
            table.add_row(
                command,
                f"{num_clips:,}",
                f"{cost.seconds:.1f}",
                f"{cost.cpu_seconds:.1f}",
                f"{num_clips / cost.seconds:,.0f}",
                f"{cost.peak_mib:,.0f}",
                tell_growth(sizes, command) if size is sizes[-1] else "",
            )
        table.add_section()
    Console(width=100).print(table)
    pages = ", ".join(f"{size.page_bytes:,} with {size.num_test:,} clips" for size in sizes)
    print(f"bytes of the page: {pages}")


def tell_growth(sizes: Sequence[Measured], command: str) -> str:
    """Processor time of the last size over the last but one's, such as "9.8 (2.1 s start-up)".

    Both without the start-up, by the line through the first two sizes; of whole times where the
    last but one is little more than a start-up.
    """
    clips = [size.clips_of(command) for size in sizes]
    seconds = [size.costs[command].cpu_seconds for size in sizes]
    start = seconds[0] - (seconds[1] - seconds[0]) * clips[0] / (clips[1] - clips[0])
    if seconds[1] < 1.2 * start:
        return f"{seconds[2] / seconds[1]:.1f} with {start:.1f} s start-up"
    return f"{(seconds[2] - start) / (seconds[1] - start):.1f} ({start:.1f} s start-up)"


if __name__ == "__main__":
    main()
