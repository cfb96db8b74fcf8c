"""The feature store against what else there is: `python -m benchmarks.store`.

Maps as a ReLU leaves them (float16, about seventy in a hundred values zero) are written and read
in batches of 32, in random order, from a warm page cache. In every round each way runs once, on
the same rows; ratios are medians over rounds of a round's ratio, so that a machine that slows
down slows all of them. Leaves docs/store-benchmark.json and the page made of it; with `--newest`,
in an environment with a newer zarr, docs/store-benchmark-newest.json and a section of that page.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import peak_mib
from benchmarks.store_formats import Format, Read, list_formats, sync
from benchmarks.store_table import PACKAGES, print_results, write_page
from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.base.progress import track

BATCH = 32
# Shape, maps to read from, maps a shard, batches a round, maps to write.
SAMPLES = {
    "1.6 MB": ((2048, 8, 7, 7), 128, 32, 1, 64),
    "0.03 MB": ((64, 8, 8, 4), 2048, 512, 4, 2048),
}
QUICK = {
    "1.6 MB": ((16, 8, 7, 7), 64, 32, 1, 64),
    "0.03 MB": ((4, 8, 8, 4), 64, 32, 1, 64),
}


def make_maps(shape: tuple[int, ...], num_maps: int) -> np.ndarray:
    """What a ReLU leaves of a unit normal distribution shifted by half its width, float16."""
    generator = np.random.default_rng(0)
    maps = np.empty((num_maps, *shape), dtype=np.float16)
    for row in maps:
        row[...] = np.maximum(generator.standard_normal(shape, dtype=np.float32) - 0.5, 0)
    return maps


def time_rounds(ways: Mapping[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Wall and CPU milliseconds of each way, run once in turn."""
    times = {}
    for name, run in ways.items():
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        times[name] = 1e3 * wall, 1e3 * cpu
    return times


def summarise(
    rounds: list[dict[str, tuple[float, float]]], num_bytes: int, base: str
) -> dict[str, dict[str, Any]]:
    """Per way: median times and rate, and the rate relative to that of `base`."""
    found = {}
    for name in rounds[0]:
        walls = [times[name][0] for times in rounds]
        ratios = [times[base][0] / times[name][0] for times in rounds]
        found[name] = {
            "milliseconds": round(statistics.median(walls), 3),
            "cpu_milliseconds": round(statistics.median(t[name][1] for t in rounds), 3),
            "megabytes_per_second": round(num_bytes / statistics.median(walls) / 1e3, 1),
            "ratio": float(f"{statistics.median(ratios):.4g}"),  # a small file's may be 0.0004
            "ratios": [float(f"{ratio:.4g}") for ratio in ratios],
        }
    return found


def warm(folder: Path) -> int:
    """Read every file into the page cache; the bytes there are."""
    num_bytes = 0
    for path in folder.rglob("*"):
        if path.is_file():
            num_bytes += len(path.read_bytes())
    return num_bytes


def measure_reading(
    formats: list[Format], maps: np.ndarray, folder: Path, num_batches: int, num_rounds: int
) -> list[dict[str, Any]]:
    """Batches in random order by every way of every format."""
    ways: dict[str, tuple[Format, Read]] = {}
    size: dict[str, float] = {}
    for number, kind in enumerate(formats):
        place = folder / str(number)
        place.mkdir()
        kind.write(place, maps)
        stored = warm(place)
        for name, read in kind.readers(place).items():
            ways[f"{name} | {kind.form}"] = kind, read
            size[f"{name} | {kind.form}"] = round(maps.nbytes / stored, 2)
    generator = np.random.default_rng(1)

    def draw() -> list[np.ndarray]:
        return [generator.permutation(len(maps))[:BATCH] for _ in range(num_batches)]

    for name, (_, read) in ways.items():
        rows = draw()[0]
        if "block" not in name and "stream" not in name:
            assert np.array_equal(read(rows), maps[rows]), f"{name} reads other values"

    def turn(batches: list[np.ndarray]) -> dict[str, Callable[[], object]]:
        def run(read: Read) -> Callable[[], object]:
            return lambda: [read(rows) is None for rows in batches]

        return {name: run(read) for name, (_, read) in ways.items()}

    peaks = {name: peak_mib(run, torch.device("cpu")) for name, run in turn(draw()).items()}
    rounds = [time_rounds(turn(draw())) for _ in range(num_rounds)]
    num_bytes = num_batches * BATCH * maps[0].nbytes
    found = summarise(rounds, num_bytes, "memmap | none")
    return [
        {"way": name.split(" | ")[0], "form": ways[name][0].form, "size_gain": size[name]}
        | {"peak_mib": round(peaks[name], 1)}
        | values
        for name, values in found.items()
    ]


def measure_writing(
    formats: list[Format], maps: np.ndarray, folder: Path, num_rounds: int
) -> list[dict[str, Any]]:
    """All maps into a new folder and onto the disk, by every format."""

    def write(kind: Format) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            kind.write(Path(place), maps)
            sync(Path(place))

    ways = {f"{kind.name} | {kind.form}": kind for kind in formats}
    runs = {name: (lambda kind=kind: write(kind)) for name, kind in ways.items()}
    peaks = {name: peak_mib(run, torch.device("cpu")) for name, run in runs.items()}
    rounds = [time_rounds(runs) for _ in range(num_rounds)]
    found = summarise(rounds, maps.nbytes, "memmap | none")
    return [
        {"way": ways[name].name, "form": ways[name].form, "peak_mib": round(peaks[name], 1)}
        | values
        for name, values in found.items()
    ]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    processor = platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0))
    return {"processor": processor, "cores": cores, "system": platform.release()} | {
        "python": platform.python_version(),
        "versions": versions,
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; the JSON document."""
    samples = QUICK if arguments.quick else SAMPLES
    machine = describe_machine()
    reading: dict[str, Any] = {}
    writing: dict[str, Any] = {}
    with track("Measuring", 2 * len(samples)) as progress:
        for name, (shape, num_maps, per_shard, num_batches, num_written) in samples.items():
            formats = list_formats(per_shard, machine["cores"])
            maps = make_maps(shape, num_maps)
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                reading[name] = measure_reading(
                    formats, maps, Path(folder), num_batches, arguments.rounds
                )
                progress.advance(1, f"{name} read")
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                writing[name] = measure_writing(
                    formats, maps[:num_written], Path(folder), arguments.rounds
                )
                progress.advance(1, f"{name} written")
    return {
        "machine": machine,
        "quick": arguments.quick,
        "num_rounds": arguments.rounds,
        "batch": BATCH,
        "reading": reading,
        "writing": writing,
    }


def main() -> None:
    """Measure, print the tables, write the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny maps: is it all there?")
    parser.add_argument("--folder", help="where to write the stores, by default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument(
        "--newest", action="store_true", help="of a newer zarr: a section of the page that is there"
    )
    parser.add_argument("--note", default="", help="what the page says of the newer measurement")
    arguments = parser.parse_args()
    results = run(arguments)
    print_results(results)
    main_file = arguments.out / "store-benchmark.json"
    newest_file = arguments.out / "store-benchmark-newest.json"
    if arguments.newest:
        write_json(newest_file, results | {"note": arguments.note})
    else:
        write_json(main_file, results)
    newest = read_json(newest_file) if newest_file.exists() else None
    write_page(read_json(main_file), arguments.out / "store-benchmark.md", newest)


if __name__ == "__main__":
    main()
