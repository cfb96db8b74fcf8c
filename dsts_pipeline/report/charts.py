"""Charts with axes: curves, dots with intervals, bars of neurons, reliability.

Enters: plain numbers and names. Leaves: a `Chart`, or None where there is nothing to draw.
Every mark says its figure under the pointer; a click on a legend's entry puts that series first;
dragging moves the axes, the wheel with Shift zooms, a double click goes back.
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
import vl_convert
from markupsafe import Markup

# ---- Colours and type of all charts, taken from figures.css so that they are stated once. -------
#
# A chart is drawn in the light colours. In the page their hex codes give way to CSS variables, so
# that one drawing serves light and dark; a file of its own keeps them.

NUM_COLOURS = 6
FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"  # all of one width
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


def series_scale(names: Sequence[str], values: Sequence[Any]) -> Any:
    """A scale that gives every named series its own value."""
    import altair as alt

    return alt.Scale(domain=list(names), range=list(values))


# ---- One chart, four outputs: Vega JSON and SVG for the page, SVG and PNG files for papers. -----
#
# Enters: a `Chart`, which is an Altair chart with the sentence that a screen reader says for it.
# Leaves: texts and bytes. vl-convert does the work inside this process, without a browser.

PNG_SCALE = 2.0


@dataclass(frozen=True)
class Chart:
    """An interactive drawing and its accessible name."""

    drawing: alt.TopLevelMixin
    label: str

    @property
    def page_svg(self) -> Markup:
        """The drawing without interaction, in the page's colours: there before any script ran."""
        # vl-convert escaped the texts in it; the label is not part of it.
        drawing = follow_the_page(_svg(self._vega))
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


# ---- Charts with axes: curves, dots with intervals, bars of neurons, reliability. ---------------
#
# Enters: plain numbers and names. Leaves: a `Chart`, or None where there is nothing to draw.
# Every mark says its figure under the pointer; a click on a legend's entry puts that series first;
# dragging moves the axes, the wheel with Shift zooms, a double click goes back.

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


# ---- Use of each neuron beside the shares of its channels that go to space and to time. ---------

ROW, USE_WIDTH, GATE_WIDTH = 20, 130, 110


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


# ---- Charts of two measured quantities: confidence against accuracy, need of time against gates.

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
