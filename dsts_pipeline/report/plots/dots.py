"""Figures with their intervals: a dot for the value, a bar from lower to upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dsts_pipeline.report.plots.svg import (
    NUM_COLOURS,
    Drawing,
    Scale,
    line,
    marker,
    text,
    tick_text,
)

WIDTH = 440
TOP, BOTTOM, RIGHT = 34, 26, 52
ROW, GROUP_GAP = 24, 10


@dataclass(frozen=True)
class Dot:
    """A value with bounds, in percent; `number` picks colour and marker."""

    name: str
    value: float
    low: float
    high: float
    number: int = 0


def dot_panel(title: str, groups: Sequence[tuple[str, Sequence[Dot]]]) -> Drawing:
    """One panel: groups of rows, one row a dot.

    Args:
        title: what the values are.
        groups: (name, dots); a group with an empty name has one labelled row per dot, one with a
            name is labelled once, beside its first row.
    """
    dots = [dot for _, members in groups for dot in members]
    labels = [name or dot.name for name, members in groups for dot in members]
    left = min(170, 14 + 6.4 * max(len(label) for label in labels))
    low = max(0.0, math.floor(min(dot.low for dot in dots) / 5 - 0.2) * 5)
    high = min(100.0, math.ceil(max(dot.high for dot in dots) / 5 + 0.2) * 5)
    height = TOP + BOTTOM + len(dots) * ROW + (len(groups) - 1) * GROUP_GAP
    scale = Scale(low, high, left + 6, WIDTH - RIGHT)
    parts = [text(0, 14, title, "panel-title"), *_grid(scale, height)]
    y = TOP + ROW / 2
    for name, members in groups:
        for position, dot in enumerate(members):
            if not name or position == 0:
                parts.append(text(left - 6, y + 4, name or dot.name, text_anchor="end"))
            parts += _draw(dot, scale, y, name)
            y += ROW
        y += GROUP_GAP
    spoken = "; ".join(
        f"{name + ', ' if name else ''}{dot.name} {dot.value:.1f} ({dot.low:.1f} to {dot.high:.1f})"
        for name, members in groups
        for dot in members
    )
    return Drawing(WIDTH, height, f"{title}: {spoken}.", tuple(parts))


def _grid(scale: Scale, height: float) -> list[Markup]:
    parts = []
    for tick in scale.ticks(5):
        x = scale(tick)
        parts.append(line(x, TOP - 6, x, height - BOTTOM + 4, "grid"))
        parts.append(text(x, height - 8, tick_text(tick), "tick", text_anchor="middle"))
    return parts


def _draw(dot: Dot, scale: Scale, y: float, group: str) -> list[Markup]:
    whole = f"{dot.value:.1f} % ({dot.low:.1f} to {dot.high:.1f})"
    tip = f"{group + ', ' if group else ''}{dot.name}: {whole}"
    return [
        line(scale(dot.low), y, scale(dot.high), y, f"whisker stroke-{dot.number % NUM_COLOURS}"),
        marker(scale(dot.value), y, dot.number, data_tip=tip),
        text(WIDTH, y + 4, f"{dot.value:.1f} %", "value", text_anchor="end"),
    ]
