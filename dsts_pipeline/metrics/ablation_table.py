"""An ablation on a terminal: our figures beside the paper's, table by table.

Enters: the dictionary of results.json. Leaves: a rich table, plain text when piped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from dsts_pipeline.metrics.paper import PAPER_ROWS, PAPER_TABLES, paper_figures

DASH = "-"


def ablation_table(results: Mapping[str, Any]) -> Table:
    """Sections are the paper's Tables 3 to 7; what belongs to none of them comes last."""
    num_seeds = f"{len(results['seeds'])} seed{'s' if len(results['seeds']) > 1 else ''}"
    table = Table(
        title=f"Ablation on the {results['split']} split (percent; {num_seeds}, 95 % "
        "intervals over seeds)",
        caption=_caption(results),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    versus = f"top-1 vs {results['reference']}"
    for heading in ("top-1", "class-wise", "parameters", versus, "p", "paper", "paper's"):
        table.add_column(heading, justify="right", no_wrap=True)
    variants = sorted(results["variants"].items(), key=lambda item: item[1]["position"])
    about = {found.number: found.about for found in PAPER_TABLES}
    seen: set[str] = set()
    for number in sorted({number for _, variant in variants for number in variant["table"]}):
        own = [(name, variant) for name, variant in variants if number in variant["table"]]
        order = list(PAPER_ROWS.get(number, {}))
        own.sort(key=lambda item: order.index(item[0]) if item[0] in order else len(order))
        heading = f"Table {number}: {about.get(number, 'not the paper’s')}"
        table.add_row(Text(heading, style="bold"))
        for name, variant in own:
            table.add_row(*_row(name, variant, number, results["reference"]))
        table.add_section()
        seen |= {name for name, _ in own}
    rest = [(name, variant) for name, variant in variants if name not in seen]
    if rest:
        table.add_row(Text("In none of the paper's tables", style="bold"))
    for name, variant in rest:
        table.add_row(*_row(name, variant, None, results["reference"]))
    return table


def _row(name: str, variant: Mapping[str, Any], number: int | None, reference: str) -> list[Any]:
    paper = None if number is None else paper_figures(number, name)
    base = None if number is None else paper_figures(number, reference)
    versus = variant["versus_reference"]
    size = variant["num_parameters"]
    row: list[Any] = [
        Text(f"  {variant['title']}"),
        figure_text(variant["top1"]),
        figure_text(variant["class_wise"], with_interval=False),
        DASH if size is None else f"{size:,}",
        DASH if versus is None else difference_text(versus),
        DASH if versus is None else p_text(versus["p_value_holm"]),
        DASH if paper is None else f"{paper['top1']:.1f} / {paper['class_wise']:.1f}",
    ]
    differs = paper is not None and base is not None and name != reference
    row.append(f"{paper['top1'] - base['top1']:+.1f}" if differs and paper and base else DASH)
    return row


def figure_text(figure: Mapping[str, float | None] | None, *, with_interval: bool = True) -> str:
    """Such as "41.2 (39.8-42.6)"."""
    if figure is None or figure["mean"] is None:
        return DASH
    text = f"{100 * figure['mean']:.1f}"
    if not with_interval or figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def difference_text(versus: Mapping[str, Any]) -> str:
    """Such as "-1.2 (-2.0 to -0.4)", in percentage points."""
    text = _signed(versus["difference"])
    if versus["low"] is None:
        return text
    return f"{text} ({_signed(versus['low'])} to {_signed(versus['high'])})"


def p_text(p_value: float | None) -> str:
    """Three digits, "<0.001", or a dash."""
    if p_value is None:
        return DASH
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _caption(results: Mapping[str, Any]) -> str:
    failed = [line for v in results["variants"].values() for line in v["failures"]]
    text = (
        f"{results['num_clips']:,} clips. Differences in points, paired t over seeds; p by Holm "
        "over all rows; intervals over clips are in results.json. The paper's columns: top-1 / "
        "class-wise and its difference, Diving48 with TPN trained end to end: other data and scale."
    )
    return text + (f" Diverged: {'; '.join(failed)}" if failed else "")
