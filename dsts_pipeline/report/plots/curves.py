"""Learning curves: one small panel a quantity, one line a head or layer, over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dsts_pipeline.report.plots.svg import (
    NUM_COLOURS,
    Drawing,
    Scale,
    element,
    line,
    marker,
    path_of,
    text,
    tick_text,
)

WIDTH, HEIGHT = 340, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 36


@dataclass(frozen=True)
class Series:
    """A line: `values[i]` at `epochs[i]`; None or NaN is a gap.

    `number` picks colour and marker; a `faint` line is thin and dashed (used for training,
    beside the solid line of held-out clips).
    """

    name: str
    epochs: Sequence[float]
    values: Sequence[float | None]
    number: int = 0
    faint: bool = False

    def points(self) -> list[tuple[float, float]]:
        """Pairs (epoch, value) that can be drawn."""
        pairs = zip(self.epochs, self.values, strict=True)
        return [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]


def curve_panel(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    reference: tuple[float, str] | None = None,
    counts: bool = False,
) -> Drawing | None:
    """One panel; None when no series has a point.

    Args:
        title: what the vertical axis shows.
        unit: put after values in hover texts, such as " %".
        low, high: bounds of the vertical axis; taken from the values where None.
        reference: a horizontal dashed line and its name.
        counts: the values are counts, so only whole numbers get a tick.
    """
    drawn = [one for one in series if one.points()]
    if not drawn:
        return None
    every = [point for one in drawn for point in one.points()]
    values = [y for _, y in every] + ([reference[0]] if reference else [])
    x_scale, y_scale = _scales([x for x, _ in every], values, low, high)
    parts = _axes(title, x_scale, y_scale, counts)
    if reference:
        y = y_scale(reference[0])
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "reference"))
        parts.append(text(WIDTH - RIGHT, y - 4, reference[1], "note", text_anchor="end"))
    for one in drawn:
        parts += _draw(one, x_scale, y_scale, unit)
    last = "; ".join(f"{one.name} ends at {one.points()[-1][1]:.3g}{unit}" for one in drawn)
    return Drawing(WIDTH, HEIGHT, f"{title} over epochs: {last}.", tuple(parts))


def _scales(
    epochs: list[float], values: list[float], low: float | None, high: float | None
) -> tuple[Scale, Scale]:
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    margin = 0.06 * ((top - bottom) or abs(top) or 1.0)
    bottom, top = (bottom - margin * (low is None)), (top + margin * (high is None))
    first, last = min(epochs), max(epochs)
    x_scale = Scale(first, last if last > first else first + 1, LEFT + 8, WIDTH - RIGHT - 8)
    return x_scale, Scale(bottom, top, HEIGHT - BOTTOM, TOP)


def _axes(title: str, x_scale: Scale, y_scale: Scale, counts: bool) -> list[Markup]:
    parts = [text(0, 14, title, "panel-title")]
    for tick in y_scale.ticks(4):
        if counts and tick != int(tick):
            continue
        y = y_scale(tick)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 6, y + 4, tick_text(tick), "tick", text_anchor="end"))
    for tick in x_scale.ticks(6):
        if tick == int(tick):
            label = tick_text(tick)
            parts.append(text(x_scale(tick), HEIGHT - 20, label, "tick", text_anchor="middle"))
    base = HEIGHT - BOTTOM
    parts.append(line(LEFT, base, WIDTH - RIGHT, base, "axis"))
    parts.append(text((LEFT + WIDTH) / 2, HEIGHT - 4, "epoch", "tick", text_anchor="middle"))
    return parts


def _draw(one: Series, x_scale: Scale, y_scale: Scale, unit: str) -> list[Markup]:
    points = [(x_scale(x), y_scale(y)) for x, y in one.points()]
    kind = "faint" if one.faint else "strong"
    parts = [
        element("path", d=path_of(points), class_=f"curve {kind} stroke-{one.number % NUM_COLOURS}")
    ]
    for (x, y), (epoch, value) in zip(points, one.points(), strict=True):
        tip = f"{one.name}, epoch {epoch:g}: {value:.4g}{unit}"
        parts.append(element("circle", cx=x, cy=y, r=7, class_="hit", data_tip=tip))
    if not one.faint:
        parts.append(marker(*points[-1], one.number))
    return parts


def swatch(one: Series) -> Drawing:
    """A short piece of a series' line with its marker, for a legend."""
    kind = "faint" if one.faint else "strong"
    parts = [line(1, 8, 31, 8, f"curve {kind} stroke-{one.number % NUM_COLOURS}")]
    if not one.faint:
        parts.append(marker(16, 8, one.number))
    return Drawing(32, 16, one.name, tuple(parts))


def key_panel(series: Sequence[Series]) -> Drawing:
    """A legend as a panel of its own, for sheets that leave the page."""
    parts = []
    for row, one in enumerate(series):
        y = TOP + 22 * row
        parts.append(swatch(one).markup(x=8, y=y - 8))
        parts.append(text(50, y + 4, one.name))
    label = "Key: " + ", ".join(one.name for one in series) + "."
    return Drawing(WIDTH, TOP + 22 * len(series), label, tuple(parts))
