"""One chart, four outputs: Vega JSON and SVG for the page, SVG and PNG files for papers.

Enters: a `Chart`, which is an Altair chart with the sentence that a screen reader says for it.
Leaves: texts and bytes. vl-convert does the work inside this process, without a browser.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

from dsts_pipeline.report.plots.theme import chart_config, colour, follow_the_page

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
