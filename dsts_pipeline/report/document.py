"""From templates to one HTML text: escaping, numbering, script digests, charts' definitions.

Enters: a template's name and what it shows. Leaves: HTML that loads nothing. jinja2 escapes all
that a template inserts; drawings escape their own texts; the content policy in the page forbids
the browser to load anything or to run any other script than the two that are in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsts_pipeline.report import wording
from dsts_pipeline.report.plots.render import Chart, chart_library
from dsts_pipeline.report.plots.theme import template_text


class _Numbering:
    """Counts figures and tables while a template runs."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, kind: str) -> int:
        self._counts[kind] += 1
        return self._counts[kind]


class _Charts:
    """Collects the interactive charts that a template showed; their places are their numbers."""

    def __init__(self) -> None:
        self.specs: list[dict[str, Any]] = []

    def add(self, chart: Chart) -> int:
        self.specs.append(chart.page_vega)
        return len(self.specs) - 1


def render_document(template: str, context: Mapping[str, Any]) -> str:
    """The finished HTML text.

    Args:
        template: one of templates/ that extends base.html.j2.
        context: what it shows, `data` (for the page's script) included.
    """
    script, library = template_text("script.js"), chart_library()
    given = {
        "numbering": _Numbering(),
        "charts": _Charts(),
        # Files of this package, not input: the only texts that go in unescaped.
        "styles": Markup(template_text("figures.css") + template_text("page.css")),
        "script": Markup(script),
        "library": Markup(library),
        "digests": [_digest(script), _digest(library)],
    }
    return _environment().get_template(template).render(given | dict(context))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dsts_pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": wording.percent, "points": wording.signed_points}
    environment.globals |= {"bounds": wording.bounds}
    environment.tests["chart"] = lambda panel: isinstance(panel, Chart)
    return environment
