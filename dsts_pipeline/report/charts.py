"""Every drawing of the page: curves, dots with intervals, bars of neurons, reliability, matrices.

Enters: plain numbers and names. Leaves: a `Chart` (an Altair chart and the sentence that a screen
reader says for it), or None where there is nothing to draw; and from charts Vega JSON and SVG for
the page, SVG and PNG files for papers. vl-convert does the work inside this process, without a
browser.

In charts with axes every mark says its figure under the pointer; a click on a legend's entry puts
that series first; dragging moves the axes, the wheel with Shift zooms, a double click goes back.
Matrices are still drawings: their cells say their figures, too, and the page's script finds a
confusion's clips by the place of a click.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from markupsafe import Markup

# ---- colours and type ---------------------------------------------------------------------------
#
# They are stated once, in figures.css. A chart is drawn in the light colours. In the page their hex
# codes give way to CSS variables, so that one drawing serves light and dark; a file of its own
# keeps them.

FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"  # all of one width
NUM_COLOURS = 6
# Colour and marker of a head are its own, whatever other heads there are; .dvc/plots has the same.
HEAD_NUMBERS = {
    "baseline": 0,
    "linear_probe": 1,
    "dsts": 2,
    "attentive_probe": 3,
    "conv_block": 4,
    "continued_classifier": 5,
}
SHAPES = ("square", "diamond", "circle", "triangle-up", "cross", "triangle-down")


def template_text(name: str) -> str:
    """A file of templates/."""
    return (files("dsts_pipeline.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def light_colours() -> Mapping[str, str]:
    """Names of the CSS variables and their light values, such as {"--ink": "#1f2226"}."""
    style = template_text("figures.css")
    return dict(re.findall(r"(--[a-z0-9-]+):\s*light-dark\(([^,()]+),", style))


def colour(name: str | int) -> str:
    """The light value of `--name`; a number picks the colour of that series."""
    key = f"c{name % NUM_COLOURS}" if isinstance(name, int) else name
    return light_colours()[f"--{key}"]


def head_number(name: str) -> int:
    """The number of a head's colour and marker; heads of other names share those from 3 on."""
    return HEAD_NUMBERS.get(name, 3 + sum(name.encode()) % (NUM_COLOURS - 3))


def follow_the_page(drawing: str) -> str:
    """`drawing` (SVG or JSON) with the variables in place of the light colours."""
    names = {value: name for name, value in light_colours().items()}
    return re.sub(
        r"#[0-9a-fA-F]{6}\b",
        lambda match: f"var({names[match[0].lower()]})" if match[0].lower() in names else match[0],
        drawing,
    )


def chart_config() -> dict[str, Any]:
    """Vega-Lite's configuration: quiet axes, no frame, nothing that a screen reader stumbles on."""
    quiet = {"labelColor": colour("muted"), "labelFontSize": 10.5, "titleColor": colour("muted")}
    axis = {"gridColor": colour("hair"), "domainColor": colour("rule"), "tickColor": colour("rule")}
    type_ = {"titleFontSize": 10.5, "titleFontWeight": "normal", "tickSize": 4}
    return {
        "aria": False,  # the page names the whole drawing
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": quiet | axis | type_,
        "title": {
            "color": colour("ink"),
            "fontSize": 12.5,
            "fontWeight": 600,
            "anchor": "start",
            "frame": "group",
            "offset": 8,
        },
        "legend": {
            "labelColor": colour("ink"),
            "labelFontSize": 11,
            "labelLimit": 300,
            "orient": "bottom",
            "title": None,
            "symbolType": "stroke",
            "rowPadding": 3,
        },
        "text": {"color": colour("ink"), "fontSize": 11},
    }


# ---- one chart, four outputs --------------------------------------------------------------------

PNG_SCALE = 2.0
# A cell of a matrix as vl-convert writes it: its text, what it is to screen readers, its outline.
_CELL = re.compile(
    r'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="rect mark" d="([^"]*)"'
)


@dataclass(frozen=True)
class Chart:
    """A drawing and its accessible name; one that is not `live` stays still in the page.

    `from_zero`: its axis of values starts at zero.
    """

    drawing: alt.TopLevelMixin
    label: str
    live: bool = True
    from_zero: bool = True

    @property
    def page_svg(self) -> Markup:
        """The drawing without interaction, in the page's colours: there before any script ran."""
        # vl-convert escaped the texts in it; the label is not part of it.
        drawing = follow_the_page(_svg(self._vega))
        if not self.live:
            drawing = _CELL.sub(_tipped_cell, drawing)
        # A page holds many drawings, whose clip paths need names of their own.
        mark = hashlib.sha256(drawing.encode()).hexdigest()[:8]
        return Markup(re.sub(r'(id="|url\(#)clip', rf"\g<1>{mark}-clip", drawing))

    @property
    def page_vega(self) -> dict[str, Any]:
        """What the page's script makes the interactive drawing of."""
        found: dict[str, Any] = json.loads(follow_the_page(json.dumps(self._vega)))
        return found

    @cached_property
    def _vega(self) -> dict[str, Any]:
        return _compiled(self.drawing)


def _tipped_cell(cell: re.Match[str]) -> str:
    # Thousands of them: the text for the pointer alone, and no more digits than can be seen.
    outline = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", cell[2])
    return f'data-tip="{cell[1]}" d="{outline}"'


def sheet_svg(charts: Sequence[Chart], columns: int = 3) -> str:
    """All charts side by side as one SVG file, on paper of its own."""
    drawings: list[Any] = [chart.drawing for chart in charts]
    joined = alt.concat(*drawings, columns=columns).resolve_scale(
        color="independent", shape="independent", strokeDash="independent"
    )
    return _svg(_compiled(joined.properties(background=colour("paper"), padding=12)))


def png_of(svg: str) -> bytes:
    """An SVG file as pixels, twice as fine as its units."""
    return bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))


@cache
def chart_library() -> str:
    """Vega with its expression interpreter (so that the page needs no eval), as one script.

    Raises:
        ValueError: The library could not stand inside a script element.
    """
    script = str(vl_convert.javascript_bundle("window.drawVega = vegaEmbed;"))
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("the chart library holds text that would end its script element")
    return script


def _compiled(drawing: alt.TopLevelMixin) -> dict[str, Any]:
    spec = drawing.to_dict(validate=False)  # the schema is checked by the tests
    spec["config"] = chart_config()
    found: dict[str, Any] = vl_convert.vegalite_to_vega(spec)
    return found


def _svg(vega: dict[str, Any]) -> str:
    drawing = str(vl_convert.vega_to_svg(vega))
    # Clip paths are counted on and on through the process; here they start at 0.
    found = dict.fromkeys(re.findall(r'id="(clip\d+)"', drawing))
    numbers = {name: f"clip{position}" for position, name in enumerate(found)}
    return re.sub(r"\bclip\d+\b", lambda match: numbers.get(match[0], match[0]), drawing)


# ---- lines over epochs, dots with intervals -----------------------------------------------------

WIDTH = 296
HEIGHT = 170


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
    # Without Shift the wheel goes on to scroll the page.
    moved = alt.selection_interval(f"axes_{own}", bind="scales", zoom="wheel![event.shiftKey]")
    rows = [
        {"name": s.name, "epoch": x, "value": y, "tip": f"{s.name}, epoch {x:g}: {y:.4g}{unit}"}
        for s in drawn
        for x, y in s.points()
    ]
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("epoch:Q", scale=alt.Scale(zero=False, nice=False, padding=8), axis=epochs),
        y=alt.Y("value:Q", scale=scale, axis=axis),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.15)),
        **_looks_of([s.name for s in drawn], [s.number for s in drawn], [s.faint for s in drawn]),
    )
    marks = base.mark_point(filled=True, size=26, opacity=1, clip=True).encode(tooltip="tip:N")
    lines = base.mark_line(strokeWidth=2, clip=True)
    layers: list[Any] = [lines, marks.add_params(chosen, moved)]
    if reference:
        level = alt.Chart(alt.InlineData([{"value": reference[0], "note": reference[1]}]))
        line = level.mark_rule(strokeDash=[2, 3], color=colour("rule")).encode(y="value:Q")
        note = line.mark_text(align="right", dy=-6, color=colour("muted"), fontSize=10.5)
        layers += [line, note.encode(x=alt.value(WIDTH), text="note:N")]
    last = "; ".join(f"{one.name} ends at {one.points()[-1][1]:.3g}{unit}" for one in drawn)
    drawing = alt.layer(*layers).properties(title=title, width=WIDTH, height=HEIGHT)
    return Chart(drawing, f"{title} over epochs: {last}.")


def _whole_epochs(series: Sequence[Series]) -> list[int]:
    last = max(int(x) for one in series for x, _ in one.points())
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10**9) if last / step <= 7)
    return list(range(0, last + 1, step))


def _looks_of(
    names: Sequence[str], numbers: Sequence[int], faint: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Colour, marker and dash by name: told apart without colour, too."""
    values: dict[str, list[Any]] = {
        "color": [colour(number) for number in numbers],
        "shape": [SHAPES[number % len(SHAPES)] for number in numbers],
        "strokeDash": [[4, 3] if thin else [1, 0] for thin in faint or [False] * len(names)],
    }
    kinds = {"color": alt.Color, "shape": alt.Shape, "strokeDash": alt.StrokeDash}
    legend = alt.Legend(columns=1)
    return {
        key: kind("name:N", scale=alt.Scale(domain=list(names), range=values[key]), legend=legend)
        for key, kind in kinds.items()
    }


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
    looks = _looks_of([dot.name for dot in dots], [dot.number for dot in dots])
    del looks["strokeDash"]
    if not named:
        for channel in looks.values():
            channel.legend = None
    order = list(dict.fromkeys(row["row"] for row in rows))
    axis = alt.Axis(title=None, grid=False, domain=False, ticks=False, labelColor=colour("ink"))
    offset: dict[str, Any] = {}
    if named:
        offset["yOffset"] = alt.YOffset("name:N", sort=[dot.name for dot in dots])
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("row:N", sort=order, axis=axis), tooltip="tip:N", **offset
    )
    lowest = min(row["low"] for row in rows)
    highest = max(row["high"] for row in rows)
    # Where it costs less than half of the width, the axis starts at zero.
    from_zero = 2 * lowest <= highest or lowest == highest
    scale = alt.Scale(zero=from_zero, nice=False, padding=0 if from_zero else 8)
    x = alt.X("low:Q", scale=scale, axis=alt.Axis(title="%", tickCount=5))
    whiskers = base.mark_rule(strokeWidth=2.4, opacity=0.55).encode(
        x=x, x2="high:Q", color=looks["color"]
    )
    marks = base.mark_point(filled=True, size=60, opacity=1).encode(x="value:Q", **looks)
    words = base.mark_text(align="right").encode(x=alt.value(WIDTH + 46), text="shown:N")
    height = alt.Step(15 if named else 24)
    drawing = alt.layer(whiskers, marks, words).properties(title=title, width=WIDTH, height=height)
    label = f"{title}: " + "; ".join(row["tip"] for row in rows) + "."
    return Chart(drawing, label, from_zero=from_zero)


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


# ---- bars to both sides of zero, and bars from zero: a row a class ------------------------------

BAR_ROW = 19
NAMES_WIDTH = 250


def bar_chart(
    title: str, unit: str, rows: Sequence[tuple[str, float, str]], *, is_gain: bool = False
) -> Chart:
    """Bars to the right of zero, and to the left where values are negative, a row a name.

    Args:
        title: what is measured. unit: below the axis.
        rows: name, value, and what the bar says.
        is_gain: blue is for the better, red for the worse, and both sides are as wide.
    """
    records = [
        {
            "row": number,
            "name": name,
            "value": value,
            "shown": ("+" if is_gain and value > 0 else "") + whole(value),
            "tip": tip,
        }
        for number, (name, value, tip) in enumerate(rows)
    ]
    values = [value for _, value, _ in rows]
    low, high = min(0.0, *values), max(0.0, *values)
    if is_gain:
        high = max(-low, high, 1.0)
        low = -high
    room = 0.14 * (high - low) or 1.0  # for the figures at the ends of bars
    ends = [low - room if low else 0.0, high + room]
    scale = alt.Scale(domain=ends, nice=False)
    base, names = _bar_rows(records)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=unit, tickCount=5))
    looks: Any = alt.value(colour(3))
    if is_gain:
        looks = alt.condition(alt.datum.value < 0, alt.value(colour(5)), alt.value(colour(2)))
    words = {"x": alt.X("value:Q", scale=scale), "text": "shown:N"}
    zero = alt.Chart(alt.InlineData([{"value": 0}])).mark_rule(color=colour("rule"))
    right = base.transform_filter(alt.datum.value >= 0).mark_text(align="left", dx=4)
    left = base.transform_filter(alt.datum.value < 0).mark_text(align="right", dx=-4)
    drawing = alt.layer(
        base.mark_bar(height=12).encode(x=x, color=looks, tooltip="tip:N"),
        right.encode(**words),
        left.encode(**words),
        zero.encode(x="value:Q"),
        names,
    ).properties(title=title, width=WIDTH, height=alt.Step(BAR_ROW))
    return Chart(drawing, f"{title}: " + "; ".join(tip for _, _, tip in rows) + ".")


def whole(value: float) -> str:
    """A number without decimals, never "-0"."""
    return f"{round(value)}".replace("-", "\N{MINUS SIGN}")


def _bar_rows(records: Sequence[Mapping[str, Any]]) -> tuple[alt.Chart, alt.Chart]:
    """Rows for bars, and the names beside them: texts, since two classes may have one name."""
    order = alt.Scale(domain=[record["row"] for record in records])
    rows = alt.Chart(alt.InlineData(list(records))).encode(y=alt.Y("row:O", scale=order, axis=None))
    names = rows.mark_text(align="right", limit=NAMES_WIDTH)
    return rows, names.encode(x=alt.value(-8), text="name:N")


# ---- use of each neuron beside the shares of its channels that go to space and to time ----------

ROW = 20
USE_WIDTH = 130
GATE_WIDTH = 110


def neuron_chart(
    layer: int, usage: Sequence[float], temporal_share: Sequence[float] | None
) -> Chart:
    """One layer: a row per neuron with its share of clips and of temporal channels (0..1)."""
    panels = [_use(layer, usage)]
    if temporal_share is not None:
        panels.append(_gates(layer, temporal_share))
    spoken = "; ".join(f"neuron {i + 1} {share:.0%}" for i, share in enumerate(usage))
    if temporal_share is not None:
        spoken += ". Temporal channels: " + "; ".join(
            f"neuron {i + 1} {share:.0%}" for i, share in enumerate(temporal_share)
        )
    drawing = alt.hconcat(*panels, spacing=14).properties(title=f"Layer {layer + 1}")
    return Chart(drawing, f"Layer {layer + 1}, share of clips: {spoken}.")


def _rows(**axis: Any) -> alt.Y:
    quiet = alt.Axis(title=None, domain=False, ticks=False, **axis)
    return alt.Y("neuron:O", axis=quiet)


def _use(layer: int, usage: Sequence[float]) -> Any:
    rows = [
        {
            "neuron": number,
            "share": 100 * share,
            "shown": f"{100 * share:.0f} %" if share >= 0.005 else "<1 %" if share else "dead",
            "tip": f"layer {layer + 1}, neuron {number}: chosen for {share:.1%} of clips",
        }
        for number, share in enumerate(usage, start=1)
    ]
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=_rows(),
        x=alt.X("share:Q", axis=alt.Axis(title="clips, %", tickCount=3, grid=False)),
        tooltip="tip:N",
    )
    bars = base.mark_bar(height=13, color=colour(2))
    words = base.mark_text(align="left", dx=4).encode(text="shown:N")
    even = alt.Chart(alt.InlineData([{"share": 100 / len(usage)}]))
    line = even.mark_rule(strokeDash=[2, 3], color=colour("rule")).encode(x="share:Q")
    return alt.layer(bars, words, line).properties(width=USE_WIDTH, height=alt.Step(ROW))


def _gates(layer: int, temporal_share: Sequence[float]) -> Any:
    rows = []
    for number, share in enumerate(temporal_share, start=1):
        tip = (
            f"layer {layer + 1}, neuron {number}: {1 - share:.0%} of channels to the spatial, "
            f"{share:.0%} to the temporal operator"
        )
        rows += [
            {"neuron": number, "to": "space", "from": 0.0, "until": 100 * (1 - share), "tip": tip},
            {"neuron": number, "to": "time", "from": 100 * (1 - share), "until": 100.0, "tip": tip},
        ]
    looks = alt.Scale(domain=["space", "time"], range=[colour(1), colour(3)])
    legend = alt.Legend(symbolType="square", columns=2, orient="bottom", offset=4)
    bars = alt.Chart(alt.InlineData(rows)).mark_bar(height=13, opacity=0.85)
    encoded = bars.encode(
        y=_rows(labels=False),
        x=alt.X("from:Q", axis=alt.Axis(title="channels, %", tickCount=3, grid=False)),
        x2="until:Q",
        color=alt.Color("to:N", scale=looks, legend=legend),
        tooltip="tip:N",
    )
    return encoded.properties(width=GATE_WIDTH, height=alt.Step(ROW))


# ---- two measured quantities: confidence against accuracy, need of time against gates -----------

SIDE = 250
Bins = Sequence[Mapping[str, Any]]  # a head's, from low to high, as metrics.json has them


def reliability_chart(heads: Sequence[tuple[str, int, Bins]]) -> Chart:
    """Accuracy over confidence, a line a head, with intervals, and the diagonal of the honest.

    Args:
        heads: name, number (for colour and marker) and bins.
    """
    rows = [_bin_row(name, one) for name, _, bins in heads for one in bins]
    chosen = alt.selection_point("chosen_reliability", fields=["name"], bind="legend")
    whole = alt.Scale(domain=[0, 100], nice=False)
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("confidence:Q", scale=whole, axis=alt.Axis(title="confidence, %", tickCount=5)),
        y=alt.Y("accuracy:Q", scale=whole, axis=alt.Axis(title="right, %", tickCount=5)),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.12)),
        **_looks_of([name for name, _, _ in heads], [number for _, number, _ in heads]),
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


def _bin_row(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "confidence": 100 * one["confidence"],
        "accuracy": 100 * one["accuracy"],
        "name": name,
        "low": 100 * one["accuracy_low"],
        "high": 100 * one["accuracy_high"],
    }
    tip = (
        f"{name}: {one['clips']} clips at {row['confidence']:.0f} % confidence, "
        f"{row['accuracy']:.0f} % right ({row['low']:.0f} to {row['high']:.0f})"
    )
    return row | {"tip": tip}


def confidence_chart(heads: Sequence[tuple[str, int, Bins]]) -> Chart:
    """How many clips each bin of confidence holds, a line a head."""
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "confidence": 100 * one["confidence"],
            "clips": one["clips"],
            "tip": f"{name}: {one['clips']} clips at {100 * one['confidence']:.0f} % confidence",
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
        **_looks_of([name for name, _, _ in heads], [number for _, number, _ in heads]),
    )
    marks = base.mark_point(filled=True, size=36, opacity=1).encode(tooltip="tip:N")
    drawing = alt.layer(base.mark_line(strokeWidth=2), marks.add_params(chosen))
    sized = drawing.properties(title="clips by confidence", width=SIDE, height=SIDE)
    return Chart(sized, "Clips by confidence: " + "; ".join(row["tip"] for row in rows) + ".")


def point_chart(
    title: str, x_title: str, y_title: str, points: Sequence[tuple[float, float, str]]
) -> Chart:
    """A mark per point, without a line: what belongs together can be seen or not.

    Args:
        points: places, and what each mark says.
    """
    rows = [{"x": x, "y": y, "tip": tip} for x, y, tip in points]
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
    return Chart(drawing, f"{title}: " + "; ".join(tip for _, _, tip in points) + ".")


# ---- matrices: confusion, its change between two runs, classes by neurons -----------------------
#
# Cells without clips are not drawn. `rules` are classes before which a matrix gets a line.

GAP = 0.6  # between cells
MIN_LABELLED_CELL = 9.0  # below this height a row's label would touch the next one


def group_starts(attributes: Sequence[Sequence[str]]) -> list[int]:
    """Classes at which the first attribute changes: where a matrix gets a rule."""
    values = [row[0] for row in attributes if row]
    return [i for i in range(1, len(values)) if values[i] != values[i - 1]]


def confusion_chart(
    confusion: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Chart:
    """Rows true, columns predicted; a cell's strength is the square root of its row's share.

    Args:
        confusion: clips per cell, `[K, K]`.
    """
    totals = np.maximum(confusion.sum(axis=1), 1)
    cells = []
    for i, j in np.argwhere(confusion > 0).tolist():
        count = int(confusion[i, j])
        tip = f"{class_names[i]} taken for {class_names[j]}: {count} of {totals[i]} clips"
        if i == j:
            tip = f"{class_names[i]}: {count} of {totals[i]} clips right"
        cells.append(_cell(i, j, tip, share=count / totals[i], good=i == j))
    label = (
        f"Confusion matrix of {len(class_names)} classes: {int(np.trace(confusion))} of "
        f"{int(confusion.sum())} clips on the diagonal. The table of pairs below lists the largest "
        "errors."
    )
    return Chart(_square(cells, class_names, rules), label, live=False)


def difference_chart(
    change: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Chart:
    """Blue where the change is for the better: more on the diagonal, fewer beside it; else red.

    Args:
        change: clips gained per cell, `[K, K]`, rows true, columns predicted.
    """
    most = max(1, int(np.abs(change).max()))
    cells = []
    for i, j in np.argwhere(change != 0).tolist():
        count = int(change[i, j])
        what = "right" if i == j else f"taken for {class_names[j]}"
        tip = f"{class_names[i]}: {abs(count)} {'more' if count > 0 else 'fewer'} {what}"
        cells.append(_cell(i, j, tip, share=abs(count) / most, good=(count > 0) == (i == j)))
    label = (
        f"Change of the confusion matrix of {len(class_names)} classes: {int(np.trace(change)):+d} "
        "clips on the diagonal. The table of classes below lists the largest changes."
    )
    return Chart(_square(cells, class_names, rules), label, live=False)


def class_by_neuron_chart(
    counts: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Chart:
    """Per layer a map of classes (rows) by neurons: share of a class's clips, `[L, K, N]`."""
    num_layers, num_classes, num_neurons = counts.shape
    width = float(np.clip(760 / (num_layers * num_neurons), 8.0, 34.0))
    height = float(np.clip(720 / num_classes, 4.0, 18.0))
    panels = []
    for layer, of_layer in enumerate(counts):
        totals = np.maximum(of_layer.sum(axis=1), 1)
        cells = []
        for i, j in np.argwhere(of_layer > 0).tolist():
            share = float(of_layer[i, j] / totals[i])
            tip = (
                f"{class_names[i]}, layer {layer + 1}, neuron {j + 1}: "
                f"{of_layer[i, j]} of {totals[i]} clips ({share:.0%})"
            )
            cells.append(_cell(i, j, tip, share=share, good=True))
        names = _row_names(class_names, height) if layer == 0 else []
        panel = _matrix(cells, (num_classes, num_neurons), (width, height), rules, names)
        panels.append(panel.properties(title=f"Layer {layer + 1}"))
    label = (
        f"Share of each class's clips that chose each neuron, for {num_layers} layers of "
        f"{num_neurons} neurons and {num_classes} classes."
    )
    return Chart(alt.hconcat(*panels, spacing=22), label, live=False)


def _cell(row: int, column: int, tip: str, *, share: float, good: bool) -> dict[str, Any]:
    return {
        "row": row,
        "column": column,
        "kind": "right" if good else "wrong",
        "strength": round(0.10 + 0.90 * share**0.5, 2),  # the root, so that small shares are seen
        "tip": tip,
    }


def _square(
    cells: Sequence[Mapping[str, Any]], class_names: Sequence[str], rules: Sequence[int]
) -> Any:
    num_classes = len(class_names)
    size = float(np.clip(720 / num_classes, 4.0, 30.0 if num_classes > 8 else 48.0))
    across = _rules(rules).encode(x=alt.X("column:O", bandPosition=0))
    layers = (across, *_row_names(class_names, size))
    return _matrix(cells, (num_classes, num_classes), (size, size), rules, layers)


def _matrix(
    cells: Sequence[Mapping[str, Any]],
    shape: tuple[int, int],
    size: tuple[float, float],
    rules: Sequence[int],
    layers: Sequence[alt.Chart] = (),
) -> Any:
    """Ground, cells, numbers of the columns, rules across the rows, and `layers` on top.

    Args:
        shape: rows and columns.
        size: width and height of a cell.
    """
    (num_rows, num_columns), (width, height) = shape, size
    every = 1 if width >= 13 else 5 if width >= 6 else 10
    numbers = alt.Axis(
        title=None,
        orient="top",
        domain=False,
        ticks=False,
        grid=False,
        values=[i for i in range(num_columns) if i == 0 or (i + 1) % every == 0],
        labelExpr="datum.value + 1",
        labelOverlap=False,
        labelAngle=0,
        labelFontSize=9,
    )
    kinds = alt.Scale(domain=["right", "wrong"], range=[colour(2), colour(5)])
    # As text: altair copies and checks thousands of records one by one, several times.
    records = alt.InlineData(json.dumps(cells), format=alt.DataFormat(type="json"))
    heat = (
        alt.Chart(records)
        .mark_rect(aria=True)
        .encode(
            x=alt.X("column:O", scale=_band(num_columns, width), axis=numbers),
            y=alt.Y("row:O", scale=_band(num_rows, height), axis=None),
            color=alt.Color("kind:N", scale=kinds, legend=None),
            opacity=alt.Opacity("strength:Q", scale=None),
            description="tip:N",
        )
    )
    lines = _rules(rules).encode(y=alt.Y("row:O", axis=None, bandPosition=0))
    return alt.layer(heat, lines, *layers).properties(
        width=alt.Step(width),
        height=alt.Step(height),
        view=alt.ViewConfig(fill=colour("plane"), stroke=None),
    )


def _band(number: int, size: float) -> alt.Scale:
    gap = GAP / size
    return alt.Scale(domain=list(range(number)), paddingInner=gap, paddingOuter=gap / 2)


def _rules(rules: Sequence[int]) -> alt.Chart:
    rows = alt.InlineData([{"row": start, "column": start} for start in rules])
    return alt.Chart(rows).mark_rule(color=colour("rule"), strokeWidth=0.8)


def _row_names(class_names: Sequence[str], height: float) -> list[alt.Chart]:
    """Names and numbers at the left, where there is room for them."""
    if height < MIN_LABELLED_CELL:
        return []
    rows: list[dict[str, Any]] = [
        {"row": i, "name": name if len(name) <= 36 else name[:35] + "…", "number": i + 1}
        for i, name in enumerate(class_names)
    ]
    base = alt.Chart(alt.InlineData(rows)).encode(y=alt.Y("row:O", axis=None))
    names = base.mark_text(align="right").encode(x=alt.value(-24), text="name:N")
    numbers = base.mark_text(align="right", color=colour("muted"), fontSize=10.5)
    return [names, numbers.encode(x=alt.value(-5), text="number:O")]
