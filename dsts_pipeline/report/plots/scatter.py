"""Charts of two measured quantities: confidence against accuracy, need of time against gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from dsts_pipeline.report.plots.charts import Series, looks_of
from dsts_pipeline.report.plots.render import Chart
from dsts_pipeline.report.plots.theme import colour

SIDE = 250


@dataclass(frozen=True)
class Bin:
    """Clips of similar confidence: all in percent, but the count."""

    confidence: float
    accuracy: float
    low: float
    high: float
    clips: int


@dataclass(frozen=True)
class Point:
    """One neuron: its place and what its mark says."""

    x: float
    y: float
    tip: str


def reliability_chart(heads: Sequence[tuple[str, int, Sequence[Bin]]]) -> Chart:
    """Accuracy over confidence, a line a head, with intervals, and the diagonal of the honest.

    Args:
        heads: name, number (for colour and marker) and bins from low to high.
    """
    rows = [_bin_row(name, one) for name, _, bins in heads for one in bins]
    chosen = alt.selection_point("chosen_reliability", fields=["name"], bind="legend")
    whole = alt.Scale(domain=[0, 100], nice=False)
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("confidence:Q", scale=whole, axis=alt.Axis(title="confidence, %", tickCount=5)),
        y=alt.Y("accuracy:Q", scale=whole, axis=alt.Axis(title="right, %", tickCount=5)),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
        **looks_of([Series(name, (), (), number) for name, number, _ in heads]),
    )
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 100, "accuracy": 100}]
    honest = alt.Chart(alt.InlineData(ends)).mark_line(strokeDash=[2, 3], color=colour("rule"))
    drawing = alt.layer(
        honest.encode(x="confidence:Q", y="accuracy:Q"),
        base.mark_rule(strokeWidth=1.4).encode(y=alt.Y("low:Q", scale=whole), y2="high:Q"),
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=44, opacity=1).encode(tooltip="tip:N").add_params(chosen),
    ).properties(title="reliability", width=SIDE, height=SIDE)
    return Chart(drawing, "Reliability: " + "; ".join(row["tip"] for row in rows) + ".")


def _bin_row(name: str, one: Bin) -> dict[str, Any]:
    tip = (
        f"{name}: {one.clips} clips at {one.confidence:.0f} % confidence, "
        f"{one.accuracy:.0f} % right ({one.low:.0f} to {one.high:.0f})"
    )
    values = {"confidence": one.confidence, "accuracy": one.accuracy}
    return values | {"name": name, "low": one.low, "high": one.high, "tip": tip}


def confidence_chart(heads: Sequence[tuple[str, int, Sequence[Bin]]]) -> Chart:
    """How many clips each bin of confidence holds, a line a head."""
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "confidence": one.confidence,
            "clips": one.clips,
            "tip": f"{name}: {one.clips} clips at {one.confidence:.0f} % confidence",
        }
        for name, _, bins in heads
        for one in bins
    ]
    chosen = alt.selection_point("chosen_confidence", fields=["name"], bind="legend")
    axis = alt.Axis(title="confidence, %", tickCount=5, grid=False)
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("confidence:Q", scale=alt.Scale(domain=[0, 100], nice=False), axis=axis),
        y=alt.Y("clips:Q", axis=alt.Axis(title=None, tickCount=5)),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
        **looks_of([Series(name, (), (), number) for name, number, _ in heads]),
    )
    marks = base.mark_point(filled=True, size=36, opacity=1).encode(tooltip="tip:N")
    drawing = alt.layer(base.mark_line(strokeWidth=2), marks.add_params(chosen))
    sized = drawing.properties(title="clips by confidence", width=SIDE, height=SIDE)
    return Chart(sized, "Clips by confidence: " + "; ".join(row["tip"] for row in rows) + ".")


def point_chart(title: str, x_title: str, y_title: str, points: Sequence[Point]) -> Chart:
    """A mark per point, without a line: what belongs together can be seen or not."""
    rows: list[dict[str, Any]] = [
        {"x": point.x, "y": point.y, "tip": point.tip} for point in points
    ]
    scale = alt.Scale(zero=False, nice=True, padding=10)
    drawing = (
        alt.Chart(alt.InlineData(rows))
        .mark_point(filled=True, size=60, color=colour(3), opacity=0.9)
        .encode(
            x=alt.X("x:Q", scale=scale, axis=alt.Axis(title=x_title, tickCount=5)),
            y=alt.Y("y:Q", scale=scale, axis=alt.Axis(title=y_title, tickCount=5)),
            tooltip="tip:N",
        )
        .properties(title=title, width=SIDE, height=170)
    )
    return Chart(drawing, f"{title}: " + "; ".join(row["tip"] for row in rows) + ".")
