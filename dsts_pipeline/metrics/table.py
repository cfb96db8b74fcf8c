"""The table of results on a terminal: percent, intervals, denominators.

Enters: the dictionary of metrics.json. Leaves: a rich table, plain text when piped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MIN_COLUMNS = 118


def ordered_heads(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Heads of metrics.json as (name, figures), in the order they were evaluated in."""
    return sorted(metrics["heads"].items(), key=lambda item: item[1].get("position", 0))


def results_table(metrics: Mapping[str, Any]) -> Table:
    """One row a head; the caption says how many clips were evaluated, failed and missing."""
    confidence = metrics.get("interval", {}).get("confidence", 0.95)
    table = Table(
        title=f"Results on the {metrics['split']} split (percent, {confidence:.0%} intervals)",
        caption=denominator_sentence(metrics),
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("head", no_wrap=True)
    for heading in ("top-1", "top-5", "class-wise", "parameters", "top-1 vs baseline"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, head in ordered_heads(metrics):
        table.add_row(
            Text(head["title"]),
            _with_interval(head, "top1"),
            f"{100 * head['top5']:.1f}",
            _with_interval(head, "class_wise"),
            f"{head['num_parameters']:,}",
            difference_text(head.get("versus_baseline")),
        )
    return table


def print_results(metrics: Mapping[str, Any]) -> Console:
    """Print the table, wide enough for all figures; returns the console, for more lines."""
    console = Console(width=max(MIN_COLUMNS, Console().width))
    console.print(results_table(metrics))
    return console


def denominator_sentence(metrics: Mapping[str, Any]) -> str:
    """Such as "1,195 of 1,200 clips evaluated; 4 failed to decode, 1 missing or unusable."

    Where clips have several views, a second sentence tells how many and which clips lack some.
    """
    evaluated, failed, missing = (metrics[key] for key in ("evaluated", "failed", "missing"))
    return (
        f"{evaluated:,} of {evaluated + failed + missing:,} clips evaluated; "
        f"{failed:,} failed to decode, {missing:,} missing or unusable.{_view_sentence(metrics)}"
    )


def _view_sentence(metrics: Mapping[str, Any]) -> str:
    if not (views := metrics.get("views")):
        return ""
    lacking = [clip["id"] for clip in views["incomplete"]]
    named = f" ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''})" if lacking else ""
    return (
        f" Probabilities are averaged over {views['per_clip']} views a clip; "
        f"clips with fewer: {len(lacking):,}{named}."
    )


def difference_text(versus: Mapping[str, Any] | None) -> str:
    """Such as "+1.2 (-0.3 to +2.7)" in percentage points; a dash where there is none."""
    if versus is None:
        return "-"
    value, low, high = (100 * versus[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{_signed(value)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0: "+0.0", never "-0.0"


def _with_interval(head: Mapping[str, Any], name: str) -> str:
    value, low, high = (100 * head[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"
