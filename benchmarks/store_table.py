"""The results of benchmarks/store.py as tables: on the terminal, and as a page for docs/."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("way", "codecs", "MB/s", "to memmap", "ms", "CPU ms", "peak MiB")
PAGE = """# The feature store measured

{trial}{rounds} rounds on {processor}, {cores} cores, Python {python}; {versions}.
`python -m benchmarks.store` writes this page from store-benchmark.json.

Maps are float16 as a ReLU leaves them; one chunk or record a map. Reading: {batch} random rows a
batch, from a warm page cache; "loop" asks for one after the other, "selection" for all in one call,
"block" reads as many neighbouring rows instead, "stream" what comes next in a shuffle buffer. Writing: everything into a new folder, each file on the disk (fsync) in
the end. "To memmap" is the median over rounds of the ratio within a round, higher is faster. Our
files always have checksums, which "not verified" does not look at. "Memory reused" hands NumPy the
same memory for every batch, as our reader does by itself; a plain memmap maps and clears fresh
pages for every batch. Ours reads with as many threads as it says; zarr-python and zarrs use their
own, the others one.

{goals}
{tables}"""


def list_goals(results: dict[str, Any]) -> list[tuple[str, float, float]]:
    """`(what, found, goal)`, higher is better."""
    large, small = results["reading"]["1.6 MB"], results["reading"]["0.03 MB"]
    ours = f"ours, {results['machine']['cores']} thread" + "s" * (results["machine"]["cores"] > 1)

    def compare(rows: list[dict[str, Any]], way: str) -> float:
        """How many times as fast as `way` ours is: the median over rounds."""
        others = _find(rows, way, "checksum")["ratios"]
        pairs = zip(_find(rows, ours, "checksum")["ratios"], others, strict=True)
        return statistics.median(one / other for one, other in pairs)

    checked = _find(large, ours, "checksum")["ratio"]
    unchecked = _find(large, f"{ours}, not verified", "checksum")["ratio"]
    return [
        ("1.6 MB, verified, to memmap", checked, 0.8),
        ("1.6 MB, not verified, to memmap", unchecked, 0.95),
        ("0.03 MB, verified, to zarr-python's loop", compare(small, "zarr-python, loop"), 5.0),
        ("0.03 MB, verified, to its selection", compare(small, "zarr-python, selection"), 5.0),
        ("1.6 MB, verified, to its selection", compare(large, "zarr-python, selection"), 1.0),
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
        for sample, rows in results[what].items():
            yield f"{what.capitalize()}, {sample} a map", rows


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


def write_page(results: dict[str, Any], path: Path) -> None:
    """Write the page for docs/."""
    machine = results["machine"]
    goals = ["| goal | wanted | found |", "|---|---|---|"]
    goals += [
        f"| {what} | >= {goal:g} | {found:.2f} |" for what, found, goal in list_goals(results)
    ]
    tables = []
    for title, rows in _list_tables(results):
        tables += [f"\n## {title}\n", f"| {' | '.join(COLUMNS)} |", "|---|---|" + "--:|" * 5]
        tables += [f"| {' | '.join(_cells(row))} |" for row in rows]
    page = PAGE.format(
        trial="**A trial with tiny maps: the figures mean nothing.** " if results["quick"] else "",
        rounds=results["num_rounds"],
        processor=machine["processor"],
        cores=machine["cores"],
        python=machine["python"],
        versions=", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        batch=results["batch"],
        goals="\n".join(goals),
        tables="\n".join(tables),
    )
    path.write_text(page + "\n", encoding="utf-8")
