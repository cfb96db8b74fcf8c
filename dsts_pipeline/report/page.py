"""The page about one run, and its plots and tables as files beside it.

Enters: `ReportInputs`, and optionally a function that yields a clip's frames.
Leaves: a `Page`: HTML without a single request, SVG and PNG plots, Markdown and LaTeX tables.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.metrics.routing import class_by_neuron, normalised_mutual_information
from dsts_pipeline.report import wording
from dsts_pipeline.report.charts import Chart, chart_library, png_of, template_text
from dsts_pipeline.report.examples import (
    Gallery,
    build_gallery,
    explorer_data,
    find_mistakes,
    preview_cells,
)
from dsts_pipeline.report.figures import Figure, draw_figures
from dsts_pipeline.report.inputs import ReportInputs, join_origins
from dsts_pipeline.report.previews import FramesOf, Previews
from dsts_pipeline.report.tables import Table, make_tables, table_files

# ---- From templates to one HTML text: escaping, numbering, script digests, charts' definitions.
#
# Enters: a template's name and what it shows. Leaves: HTML that loads nothing. jinja2 escapes all
# that a template inserts; drawings escape their own texts; the content policy in the page forbids
# the browser to load anything or to run any other script than the two that are in it.


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


# ---- The page about one run, and its plots and tables as files beside it. -----------------------
#
# Enters: `ReportInputs`, and optionally a function that yields a clip's frames.
# Leaves: a `Page`: HTML without a single request, SVG and PNG plots, Markdown and LaTeX tables.


@dataclass(frozen=True)
class Page:
    """The finished HTML text, and its figures and tables by name."""

    html: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    @cached_property
    def plots(self) -> dict[str, str]:
        """Each figure as the text of an SVG file."""
        return {name: figure.as_file() for name, figure in self.figures.items()}


@dataclass(frozen=True)
class PreviewOptions:
    """How many clips are shown moving, and how large.

    Args:
        num_gallery_clips: per neuron; 0: no gallery.
        num_cell_clips: per cell of the confusion matrix.
        num_mistakes: wrong answers that are shown one by one.
        size_px: height and width of a preview.
        max_bytes: of all previews as they stand in the page.
    """

    num_gallery_clips: int = 4
    num_cell_clips: int = 6
    num_mistakes: int = 40
    size_px: int = 72
    max_bytes: int = 12_000_000


def render_report(
    inputs: ReportInputs,
    *,
    frames_of: FramesOf | None = None,
    options: PreviewOptions | None = None,
) -> Page:
    """Draw and write out the whole page.

    Args:
        frames_of: yields uint8 `[T, H, W, 3]` (RGB) for a clip id; without it the page has no
            previews and no gallery.
    """
    options = options or PreviewOptions()
    figures, tables = draw_figures(inputs), make_tables(inputs)
    context = _context(inputs, frames_of, options) | {"figures": figures, "tables": tables}
    context["tabs"] = _tabs(context)
    return Page(render_document("report.html.j2", context), figures, tables)


def write_report(page: Page, path: str | Path, *, write_plots: bool = True) -> list[Path]:
    """Write `page` to `path`; returns the paths.

    Beside it, where `write_plots`: plots/NAME.svg and .png, tables/NAME.md and .tex.
    """
    path = Path(path)
    contents: dict[Path, bytes] = {path: page.html.encode()}
    if write_plots:
        for name, drawing in page.plots.items():
            plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
            contents[path.parent / "plots" / f"{plain}.svg"] = drawing.encode()
            contents[path.parent / "plots" / f"{plain}.png"] = png_of(drawing)
        for name, text in table_files(page.tables).items():
            contents[path.parent / "tables" / name] = text.encode()
    for target, content in contents.items():
        write_atomic(target, content)
    return list(contents)


def _context(
    inputs: ReportInputs, frames_of: FramesOf | None, options: PreviewOptions
) -> dict[str, Any]:
    answers = inputs.predictions[inputs.main_head]
    previews = Previews(
        answers.clip_ids, frames_of, size_px=options.size_px, max_bytes=options.max_bytes
    )
    gallery = _gallery(inputs, previews, options) if frames_of is not None else None
    mistakes = find_mistakes(inputs, previews, options.num_mistakes)
    preview_cells(answers, previews, options.num_cell_clips)
    provenance = inputs.metrics.get("provenance", {})
    return {
        "inputs": inputs,
        "title": inputs.title,
        "metrics": inputs.metrics,
        "main": inputs.metrics["heads"][inputs.main_head],
        "answers": answers,
        "information": route_information(inputs),
        "lead": wording.lead_sentences(inputs),
        "gallery": gallery,
        "mistakes": mistakes,
        "num_wrong": int((answers.predicted != answers.labels).sum()),
        "previews": previews,
        "origins": join_origins({"evaluation": provenance, **inputs.origins}),
        "data": explorer_data(inputs, previews),
    }


def route_information(inputs: ReportInputs) -> list[float]:
    """Per layer, the normalised mutual information of class and chosen neuron."""
    answers = inputs.predictions[inputs.main_head]
    routing = inputs.metrics["heads"][inputs.main_head].get("routing")
    if not routing or answers.neurons is None:
        return []
    counts = class_by_neuron(*answers.routes(), answers.num_classes, routing["num_neurons"])
    return [normalised_mutual_information(layer) for layer in counts]


def _gallery(inputs: ReportInputs, previews: Previews, options: PreviewOptions) -> Gallery | None:
    routing = inputs.metrics["heads"][inputs.main_head].get("routing")
    answers = inputs.predictions[inputs.main_head]
    if not options.num_gallery_clips or not routing or answers.neurons is None:
        return None
    return build_gallery(
        answers, routing["num_neurons"], previews, num_clips=options.num_gallery_clips
    )


def _tabs(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(id, title) of the sections that this run has."""
    figures = context["figures"]
    tabs = (
        ("summary", "Summary", True),
        ("paper", "Paper’s tables", True),
        ("learning", "Curves", "curves" in figures),
        ("errors", "Confusion", True),
        ("reliability", "Reliability", True),
        ("routing", "Routing", "neurons" in figures),
        ("gallery", "Gallery", context["gallery"] is not None),
        ("mistakes", "Mistakes", bool(context["mistakes"])),
        ("run", "Run", True),
    )
    return [(name, title) for name, title, there in tabs if there]
