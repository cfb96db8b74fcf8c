"""The page about one run, and its plots and tables as files beside it.

Enters: `ReportInputs`, and optionally a function that yields a clip's frames.
Leaves: a `Page`: HTML without a single request, SVG and PNG plots, Markdown and LaTeX tables.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.base.settings import ReportSettings
from dsts_pipeline.metrics.routing import normalised_mutual_information
from dsts_pipeline.metrics.summary import denominator_sentence
from dsts_pipeline.report.charts import Chart, chart_library, png_of, template_text
from dsts_pipeline.report.examples import (
    build_gallery,
    explorer_data,
    find_mistakes,
    pick_examples,
    preview_cells,
)
from dsts_pipeline.report.figures import Figure, draw_figures
from dsts_pipeline.report.inputs import PAPERS_DATASETS, ReportInputs, join_origins
from dsts_pipeline.report.previews import FramesOf, Previews, SeenOf
from dsts_pipeline.report.tables import (
    PLACES,
    Table,
    bounds,
    difference,
    make_tables,
    percent,
    signed_points,
    table_files,
)


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


def render_report(
    inputs: ReportInputs,
    settings: ReportSettings = ReportSettings(),
    *,
    frames_of: FramesOf | None = None,
    seen_of: SeenOf | None = None,
) -> Page:
    """Draw and write out the whole page.

    Args:
        settings: section `report`: the title, and how much is shown.
        frames_of: yields uint8 `[T, H, W, 3]` (RGB) for a clip id; without it the page has no
            previews and no gallery.
        seen_of: yields what the model saw of a clip and attended to, for heads that do.
    """
    answers = inputs.answers
    figures = draw_figures(inputs)
    tables = make_tables(inputs, settings.num_confused_pairs)
    previews = Previews(
        answers.clip_ids,
        frames_of,
        seen_of=seen_of,
        size_px=settings.preview_size_px,
        max_bytes=int(settings.max_preview_mb * 1e6),
    )
    examples = pick_examples(inputs, previews, settings.num_examples) if frames_of else []
    mistakes = find_mistakes(inputs, previews, settings.num_mistakes)
    gallery = None
    if frames_of is not None and settings.num_gallery_clips and "neurons" in figures:
        num_clips = settings.num_gallery_clips
        gallery = build_gallery(answers, inputs.num_neurons, previews, num_clips=num_clips)
    preview_cells(answers, previews, settings.num_cell_clips)
    provenance = inputs.metrics.get("provenance", {})
    context = {
        "inputs": inputs,
        "title": settings.title or inputs.dataset or "unnamed data set",
        "metrics": inputs.metrics,
        "main": inputs.main,
        "answers": answers,
        "information": route_information(inputs),
        "numbers": headline_numbers(inputs),
        "lead": lead_sentences(inputs),
        "use_of_neurons": use_of_neurons(inputs),
        "examples": examples,
        "left_out_elsewhere": [
            sentence for name, sentence in inputs.left_out.items() if name not in PLACES
        ],
        "gallery": gallery,
        "mistakes": mistakes,
        "num_wrong": int((answers.predicted != answers.labels).sum()),
        "previews": previews,
        "origins": join_origins({"evaluation": provenance, **inputs.origins}),
        "paper_tables": [name for name in tables if tables[name].title],
        "on_papers_data": inputs.dataset in PAPERS_DATASETS,
        "data": explorer_data(inputs, previews),
        "tabs": [
            ("summary", "Summary", True),
            ("curves", "Curves", "curves" in figures),
            ("confusion", "Confusion", True),
            ("mistakes", "Mistakes", bool(mistakes)),
            (
                "routing",
                "Routing" if inputs.num_neurons else "Time and pairs",
                "neurons" in figures or inputs.routing_of_main is not None,
            ),
            ("gallery", "Gallery", gallery is not None),
            ("reliability", "Reliability", True),
            ("paper", "Paper’s tables", any(table.title for table in tables.values())),
            ("run", "Run", True),
        ],
    }
    return render_page("report.html.j2", figures, tables, context)


def route_information(inputs: ReportInputs) -> list[float]:
    """Per layer, the normalised mutual information of class and chosen neuron."""
    counts = inputs.neuron_counts()
    if counts is None or "information" in inputs.left_out:
        return []
    return [normalised_mutual_information(layer) for layer in counts]


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


# ---- the summary: what the run found, in sentences that claim no more than the intervals carry --

PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Number:
    """A figure that stands large: its value, its interval, and what it is of."""

    value: str
    interval: str
    about: str


def headline_numbers(inputs: ReportInputs) -> list[Number]:
    """At most three: right clips, right clips averaged over classes, and the gain."""
    head = inputs.main
    has_bounds = "intervals" not in inputs.left_out
    numbers = [
        Number(percent(head[key]) + PERCENT, bounds(head, key) if has_bounds else "", about)
        for key, about in (
            ("top1", f"of clips right, {head['title']}"),
            ("class_wise", "averaged over classes"),
        )
        if head.get(key) is not None
    ]
    found = _versus_opponent(inputs)
    if found:
        gain = difference(found)
        about = f"points against {inputs.opponent_title}, on the same clips"
        numbers.append(Number(gain.text, gain.detail, about))
    return numbers


def _versus_opponent(inputs: ReportInputs) -> Mapping[str, Any] | None:
    """The paired difference in top-1 of the main head and its opponent."""
    if inputs.main.get("versus_baseline"):
        found: Mapping[str, Any] = inputs.main["versus_baseline"]
        return found
    heads = (inputs.main_head, inputs.opponent)
    for compared in inputs.metrics.get("comparisons", ()):
        if (compared["first_head"], compared["second_head"]) == heads:
            return dict(compared["top1"])
    return None


def lead_sentences(inputs: ReportInputs) -> list[str]:
    """A few sentences about the main head, those that it is compared with, and the clips."""
    metrics = inputs.metrics
    head = inputs.main
    has_bounds = "intervals" not in inputs.left_out
    confidence = f"{100 * metrics.get('interval', {}).get('confidence', 0.95):.0f}{PERCENT}"
    interval = ""
    if has_bounds:
        interval = f" ({confidence} interval {bounds(head, 'top1')})"
    first_five = ""
    if inputs.has_top5:
        first_five = f", and among its first five for {percent(head['top5'])}{PERCENT}"
    sentences = [
        f"{head['title']} names the right class first for {percent(head['top1'])}{PERCENT} of the "
        f"{metrics['evaluated']:,} clips of the {metrics['split']} split{interval}{first_five}. "
        f"Averaged over classes it reaches {percent(head['class_wise'])}{PERCENT}."
    ]
    if head.get("versus_baseline") and inputs.baseline:
        sentences.append(_against(head["versus_baseline"], metrics["heads"][inputs.baseline]))
    sentences += [
        f"For comparison, {other['title']} reaches {percent(other['top1'])}{PERCENT}"
        + (f" ({bounds(other, 'top1')})." if has_bounds else ".")
        for key, other in inputs.heads
        if key not in (inputs.main_head, inputs.baseline)
    ]
    sentences.append(denominator_sentence(metrics))
    return sentences


def _against(versus: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    change = f"{signed_points(versus['difference'])} points"
    start = f"Against the baseline ({base['title']}) on the same clips that is {change}"
    if versus.get("difference_low") is None:
        return f"{start}."
    low, high = (versus[f"difference_{end}"] for end in ("low", "high"))
    interval = f"paired interval {signed_points(low)} to {signed_points(high)}"
    if low <= 0 <= high:
        return f"{start} ({interval}): no more than the choice of test clips alone can explain."
    return f"{start} ({interval})."


def use_of_neurons(inputs: ReportInputs) -> str:
    """How many neurons do the work, for the routing's part; empty without a choice."""
    if not inputs.num_neurons:
        return ""
    layers = inputs.main["routing"]["layers"]
    num_neurons = inputs.num_neurons
    busy = " / ".join(f"{np.exp(layer['entropy']):.1f}" for layer in layers)
    dead = sum(layer["dead"] for layer in layers)
    total = len(layers) * num_neurons
    idle = "every neuron is used" if dead == 0 else f"no clip chose {dead} of the {total}"
    return (
        f"Of its {num_neurons} neurons per layer, {busy} are effectively in use, layer by layer, "
        f"and {idle}. Effectively in use: as many neurons that shared the clips evenly would "
        "spread them as much (the exponential of the entropy of their use)."
    )


# ---- from a template to one HTML text -----------------------------------------------------------
#
# jinja2 escapes all that a template inserts; charts escape their own texts; the content policy in
# the page forbids the browser to load anything or to run any other script than the two in it.


def render_page(
    template: str,
    figures: Mapping[str, Figure],
    tables: Mapping[str, Table],
    context: Mapping[str, Any],
) -> Page:
    """The finished page.

    Args:
        template: one of templates/ that extends base.html.j2.
        context: what else it shows: `data` for the page's script, `tabs` as (id, title, whether
            the page has this section), and more.
    """
    script = template_text("script.js")
    library = chart_library()
    given = {
        "figures": figures,
        "tables": tables,
        "numbering": _Numbering(),
        "charts": _Charts(),
        # Files of this package, not input: the only texts that go in unescaped.
        "styles": Markup(template_text("figures.css") + template_text("page.css")),
        "script": Markup(script),
        "library": Markup(library),
        "digests": [_digest(script), _digest(library)],
    }
    tabs: Iterable[tuple[str, str, bool]] = context["tabs"]
    shown = {"tabs": [(name, title) for name, title, there in tabs if there]}
    html = _environment().get_template(template).render(given | dict(context) | shown)
    return Page(html, figures, tables)


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
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    environment.filters["percent"] = percent
    return environment
