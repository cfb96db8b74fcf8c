"""Colours and type of all charts, taken from figures.css so that they are stated once.

A chart is drawn in the light colours. In the page their hex codes give way to CSS variables, so
that one drawing serves light and dark; a file of its own keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

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
