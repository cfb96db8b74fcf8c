"""Print the table of the last evaluation and the path of its report."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_signed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.metrics import results_table
from stages import places

MIN_COLUMNS = 118


def run(settings: Settings) -> None:
    """Read metrics.json and print it.

    Raises:
        DataError: Nothing was evaluated yet.
    """
    if not places.METRICS.exists():
        raise DataError(f"{places.METRICS}: no results yet; run `make demo` or `dvc repro`")
    console = print_table(read_signed(places.METRICS))
    if places.REPORT.exists():
        console.print(f"report: {places.REPORT.resolve()}", soft_wrap=True, highlight=False)
    else:
        console.print("no report yet: run `python cli.py report`", highlight=False)


def print_table(metrics: dict[str, Any]) -> Console:
    """Print the table, wide enough for all figures; returns the console, for more lines."""
    console = Console(width=max(MIN_COLUMNS, Console().width))
    console.print(results_table(metrics))
    return console
