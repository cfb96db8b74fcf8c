"""The results of benchmarks/store.py as tables: on the terminal, and as a page for docs/."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ORDER = ("1.6 MB", "0.03 MB")
PACKAGES = ("numpy", "zarr", "zarrs", "h5py", "webdataset", "numcodecs", "google-crc32c")
COLUMNS = ("way", "codecs", "MB/s", "to memmap", "ms", "CPU ms", "peak MiB")
PAGE = """# The feature store measured

{trial}{rounds} rounds on {processor}, {cores} cores, Python {python}; {versions}.
`python -m benchmarks.store` writes this page from store-benchmark.json.

Maps are float16 as a ReLU leaves them; one chunk or record a map. Reading: {batch} random rows a
batch, from a warm page cache, "loop" one after the other, "selection" all in one call; "block"
reads as many neighbouring rows instead, "stream" what comes next in a shuffle buffer. Writing:
everything into a new folder, each file on the disk (fsync) in the end. "To memmap" is the median
over rounds of the ratio within a round, higher is faster. Our files always have checksums, which
"not verified" does not look at. "Memory reused" hands NumPy the same memory for every batch, as our
reader does by itself; a plain memmap maps and clears fresh pages for every batch. Ours reads with
as many threads as it says; zarr-python and zarrs use their own, the others one.

{goals}
{tables}"""


NEWEST = """
## Against a newer zarr-python

The tables above are of zarr {before}. From Python 3.12 on constraints.txt has a newer one, which
reads neighbouring parts of a shard at once. {rounds} rounds with zarr {zarr}, zarrs {zarrs},
numcodecs {numcodecs}, Python {python}, by `python -m benchmarks.store --newest`. {note}
Ours is so many times as fast as zarr-python, checksums verified:

| 32 random rows | one after the other | selection |
|---|--:|--:|
{times}
{tables}"""


def _ours(results: dict[str, Any]) -> str:
    """Our way to read with a thread per core."""
    cores = results["machine"]["cores"]
    return f"ours, {cores} thread" + "s" * (cores > 1)


def compare(results: dict[str, Any], sample: str, way: str) -> float:
    """How many times as fast as `way` ours is, checksums verified: the median over rounds."""
    rows = results["reading"][sample]
    pairs = zip(
        _find(rows, _ours(results), "checksum")["ratios"],
        _find(rows, way, "checksum")["ratios"],
        strict=True,
    )
    return statistics.median(one / other for one, other in pairs)


def list_goals(results: dict[str, Any]) -> list[tuple[str, float, float]]:
    """`(what, found, goal)`, higher is better."""
    large = results["reading"]["1.6 MB"]
    ours = _ours(results)
    times = compare(results, "0.03 MB", "zarr-python, loop")
    checked = _find(large, ours, "checksum")["ratio"]
    unchecked = _find(large, f"{ours}, not verified", "checksum")["ratio"]
    return [
        ("1.6 MB, verified, to memmap", checked, 0.8),
        ("1.6 MB, not verified, to memmap", unchecked, 0.95),
        ("0.03 MB, verified, to zarr-python's loop", times, 5.0),
    ]


def _find(rows: list[dict[str, Any]], way: str, form: str) -> dict[str, Any]:
    return next(row for row in rows if (row["way"], row["form"]) == (way, form))


def _cells(row: dict[str, Any]) -> list[str]:
    gain = row.get("size_gain", 0)
    form = f"{row['form']} ({gain:.2f}x)" if "zstd" in row["form"] and gain else row["form"]
    rate, ratio = f"{row['megabytes_per_second']:,.0f}", f"{row['ratio']:.2f}"
    times = [f"{row['milliseconds']:.2f}", f"{row['cpu_milliseconds']:.2f}"]
    return [row["way"], form, rate, ratio, *times, f"{row['peak_mib']:.0f}"]


def _list_tables(results: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for what in ("reading", "writing"):
        for sample in ORDER:
            yield f"{what.capitalize()}, {sample} a map", results[what][sample]


def print_results(results: dict[str, Any]) -> None:
    """Print all tables; a missed goal is marked."""
    console = Console(width=120)
    for title, rows in _list_tables(results):
        table = Table(title=title, title_justify="left")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
        for row in rows:
            table.add_row(*_cells(row))
        console.print(table)
    for what, found, goal in list_goals(results):
        mark = "met" if found >= goal else "missed"
        console.print(f"{what}: {found:.2f}, goal >= {goal:g}: {mark}")


def write_page(results: dict[str, Any], path: Path, newest: dict[str, Any] | None = None) -> None:
    """Write the page for docs/; `newest` are results with a newer zarr, on reading alone."""
    machine = results["machine"]
    goals = ["| goal | wanted | found |", "|---|---|---|"]
    goals += [
        f"| {what} | >= {goal:g} | {found:.2f} |" for what, found, goal in list_goals(results)
    ]
    tables = [_table(f"## {title}", rows) for title, rows in _list_tables(results)]
    page = PAGE.format(
        trial="**A trial with tiny maps: the figures mean nothing.** " if results["quick"] else "",
        rounds=results["num_rounds"],
        processor=machine["processor"],
        cores=machine["cores"],
        python=machine["python"],
        versions=", ".join(
            f"{name} {machine['versions'][name]}"
            for name in PACKAGES
            if name in machine["versions"]
        ),
        batch=results["batch"],
        goals="\n".join(goals),
        tables="\n".join(tables),
    )
    if newest is not None:
        page += "\n" + _newest_section(newest, results["machine"]["versions"]["zarr"])
    path.write_text(page + "\n", encoding="utf-8")


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    head = [f"\n{title}\n", f"| {' | '.join(COLUMNS)} |", "|---|---|" + "--:|" * 5]
    return "\n".join(head + [f"| {' | '.join(_cells(row))} |" for row in rows])


def _newest_section(newest: dict[str, Any], before: str) -> str:
    times = [
        f"| {sample} a map | {compare(newest, sample, 'zarr-python, loop'):.1f} | "
        f"{compare(newest, sample, 'zarr-python, selection'):.1f} |"
        for sample in ORDER
    ]
    versions = newest["machine"]["versions"]
    return NEWEST.format(
        before=before,
        rounds=newest["num_rounds"],
        python=newest["machine"]["python"],
        note=newest["note"],
        times="\n".join(times),
        tables="\n".join(
            _table(
                f"### Reading, {sample} a map",
                [row for row in newest["reading"][sample] if row["form"] == "checksum"],
            )
            for sample in ORDER
        ),
        **{name: versions[name] for name in ("zarr", "zarrs", "numcodecs")},
    )
