"""A figure: panels that belong together, in the page and as one file for papers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from dsts_pipeline.report.plots.render import Chart, sheet_svg
from dsts_pipeline.report.plots.svg import Drawing, element, sheet
from dsts_pipeline.report.plots.theme import light_colours, template_text

_MARGIN = 12.0


@dataclass(frozen=True)
class Figure:
    """Panels of one kind: charts (interactive), or drawings whose cells the page's script knows."""

    panels: tuple[Chart, ...] | tuple[Drawing, ...]
    columns: int = 3

    def as_file(self) -> str:
        """All panels as one SVG file with its own colours: a file knows no page around it."""
        if isinstance(self.panels[0], Chart):
            return sheet_svg(self.panels, self.columns)
        return _with_own_colours(sheet(self.panels, self.columns))


def _with_own_colours(drawing: Drawing) -> str:
    style, light = template_text("figures.css"), light_colours()
    rules = style[style.index("/* marks */") :]
    rules = re.sub(r"var\((--[a-z0-9-]+)\)", lambda match: light[match[1]], rules)
    width, height = drawing.width + 2 * _MARGIN, drawing.height + 2 * _MARGIN
    return str(
        element(
            "svg",
            element("style", Markup(rules)),
            element("rect", width=width, height=height, fill=light["--paper"]),
            drawing.markup(x=_MARGIN, y=_MARGIN),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.0f} {height:.0f}",
            width=width,
            height=height,
        )
    )
