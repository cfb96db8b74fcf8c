"""Charts with axes: curves, dots with intervals, bars of neurons, reliability.

Enters: plain numbers and names. Leaves: a `Chart`, or None where there is nothing to draw.
Every mark says its figure under the pointer; a click on a legend's entry puts that series first;
dragging moves the axes, the wheel with Shift zooms, a double click goes back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from dsts_pipeline.report.plots.render import Chart
from dsts_pipeline.report.plots.theme import SHAPES, colour, series_scale

WIDTH, HEIGHT = 296, 170


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


@dataclass(frozen=True)
class Dot:
    """A value with bounds, in percent; `number` picks colour and marker."""

    name: str
    value: float
    low: float
    high: float
    number: int = 0


def curve_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    reference: tuple[float, str] | None = None,
    counts: bool = False,
) -> Chart | None:
    """Lines over epochs.

    Args:
        title: what the vertical axis shows.
        unit: put after values, such as " %".
        low, high: bounds of the vertical axis; taken from the values where None.
        reference: a horizontal dashed line and its name.
        counts: the values are counts, so only whole numbers get a tick.
    """
    drawn = [one for one in series if one.points()]
    if not drawn:
        return None
    bounds: dict[str, Any] = {"domainMin": low} if low is not None else {}
    bounds |= {"domainMax": high} if high is not None else {}
    epochs = alt.Axis(title="epoch", values=_whole_epochs(drawn), format="d", grid=False)
    whole: dict[str, Any] = {"tickMinStep": 1} if counts else {}
    axis = alt.Axis(title=None, tickCount=4, **whole)
    scale = alt.Scale(zero=False, nice=high is None, **bounds)
    own = re.sub(r"\W", "_", title)  # charts that share a sheet need names of their own
    chosen = alt.selection_point(f"chosen_{own}", fields=["name"], bind="legend")
    base = alt.Chart(alt.InlineData(_curve_rows(drawn, unit))).encode(
        x=alt.X("epoch:Q", scale=alt.Scale(zero=False, nice=False, padding=8), axis=epochs),
        y=alt.Y("value:Q", scale=scale, axis=axis),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.15)),
        **looks_of(drawn),
    )
    marks = base.mark_point(filled=True, size=26, opacity=1, clip=True).encode(tooltip="tip:N")
    layers: list[Any] = [
        base.mark_line(strokeWidth=2, clip=True),
        marks.add_params(chosen, _moved_axes(own)),
    ]
    if reference:
        layers += _reference(reference)
    last = "; ".join(f"{one.name} ends at {one.points()[-1][1]:.3g}{unit}" for one in drawn)
    drawing = alt.layer(*layers).properties(title=title, width=WIDTH, height=HEIGHT)
    return Chart(drawing, f"{title} over epochs: {last}.")


def _whole_epochs(series: Sequence[Series]) -> list[int]:
    last = max(int(x) for one in series for x, _ in one.points())
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10**9) if last / step <= 7)
    return list(range(0, last + 1, step))


def _curve_rows(series: Sequence[Series], unit: str) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "epoch": x,
            "value": y,
            "tip": f"{one.name}, epoch {x:g}: {y:.4g}{unit}",
        }
        for one in series
        for x, y in one.points()
    ]


def looks_of(series: Sequence[Series], columns: int = 1) -> dict[str, Any]:
    """Colour, marker and dash by name: told apart without colour, too."""
    names = [one.name for one in series]
    legend = alt.Legend(columns=columns)
    numbers = [one.number for one in series]
    colours, shapes = [colour(n) for n in numbers], [SHAPES[n % len(SHAPES)] for n in numbers]
    dashes = [[4, 3] if one.faint else [1, 0] for one in series]
    return {
        "color": alt.Color("name:N", scale=series_scale(names, colours), legend=legend),
        "shape": alt.Shape("name:N", scale=series_scale(names, shapes), legend=legend),
        "strokeDash": alt.StrokeDash("name:N", scale=series_scale(names, dashes), legend=legend),
    }


def _moved_axes(own: str) -> alt.Parameter:
    # Without Shift the wheel goes on to scroll the page.
    return alt.selection_interval(f"axes_{own}", bind="scales", zoom="wheel![event.shiftKey]")


def _reference(reference: tuple[float, str]) -> list[Any]:
    rows = alt.InlineData([{"value": reference[0], "note": reference[1]}])
    line = alt.Chart(rows).mark_rule(strokeDash=[2, 3], color=colour("rule")).encode(y="value:Q")
    note = line.mark_text(align="right", dy=-6, color=colour("muted"), fontSize=10.5)
    return [line, note.encode(x=alt.value(WIDTH), text="note:N")]


def dot_chart(title: str, groups: Sequence[tuple[str, Sequence[Dot]]]) -> Chart:
    """Dots with intervals, one row a dot.

    Args:
        title: what the values are.
        groups: (name, dots); a group with an empty name has one labelled row per dot, the dots of
            a named one share its label.
    """
    rows = [_dot_row(name, dot) for name, members in groups for dot in members]
    named = any(name for name, _ in groups)
    dots = list({dot.name: dot for _, members in groups for dot in members}.values())
    looks = looks_of([Series(dot.name, (), (), dot.number) for dot in dots])
    looks.pop("strokeDash")
    if not named:
        looks = {key: channel.copy() for key, channel in looks.items()}
        for channel in looks.values():
            channel.legend = None
    order = list(dict.fromkeys(row["row"] for row in rows))
    axis = alt.Axis(title=None, grid=False, domain=False, ticks=False, labelColor=colour("ink"))
    offset: dict[str, Any] = {}
    if named:
        offset["yOffset"] = alt.YOffset("name:N", sort=[dot.name for dot in dots])
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("row:N", sort=order, axis=axis.copy()), tooltip="tip:N", **offset
    )
    scale, ticks = alt.Scale(zero=False, nice=False, padding=8), alt.Axis(title="%", tickCount=5)
    x = alt.X("low:Q", scale=scale, axis=ticks)
    whiskers = base.mark_rule(strokeWidth=2.4, opacity=0.55).encode(
        x=x, x2="high:Q", color=looks["color"]
    )
    marks = base.mark_point(filled=True, size=60, opacity=1).encode(x="value:Q", **looks)
    words = base.mark_text(align="right").encode(x=alt.value(WIDTH + 46), text="shown:N")
    height = alt.Step(15 if named else 24)
    drawing = alt.layer(whiskers, marks, words).properties(title=title, width=WIDTH, height=height)
    return Chart(drawing, f"{title}: " + "; ".join(row["tip"] for row in rows) + ".")


def _dot_row(group: str, dot: Dot) -> dict[str, Any]:
    whole = f"{dot.value:.1f} % ({dot.low:.1f} to {dot.high:.1f})"
    return {
        "row": group or dot.name,
        "name": dot.name,
        "value": dot.value,
        "low": dot.low,
        "high": dot.high,
        "shown": f"{dot.value:.1f} %",
        "tip": f"{group + ', ' if group else ''}{dot.name}: {whole}",
    }
