"""The page: one HTML file without a single request, and its plots as SVG files beside it.

Enters: `ReportInputs`, and optionally a function that yields a clip's frames.
Leaves: a `Page`. jinja2 escapes all that the template inserts; drawings escape their own texts;
the content policy in the page forbids the browser to load anything or to run any other script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.metrics.routing import class_by_neuron, normalised_mutual_information
from dsts_pipeline.report import wording
from dsts_pipeline.report.figures import Figure, draw_figures
from dsts_pipeline.report.gallery import FramesOf, build_gallery
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.origins import join_origins
from dsts_pipeline.report.paper import CITATION, PAPER_TABLES
from dsts_pipeline.report.plots.curves import swatch
from dsts_pipeline.report.plots.svg import element


@dataclass(frozen=True)
class Page:
    """The finished HTML text and its plots, by name, as standalone SVG texts."""

    html: str
    plots: Mapping[str, str]


class _Numbering:
    """Counts figures and tables while the template runs."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, kind: str) -> int:
        self._counts[kind] += 1
        return self._counts[kind]


def render_report(
    inputs: ReportInputs,
    *,
    frames_of: FramesOf | None = None,
    num_gallery_clips: int = 4,
    gallery_size_px: int = 72,
) -> Page:
    """Draw and write out the whole page.

    Args:
        frames_of: yields uint8 `[T, H, W, 3]` (RGB) for a clip id; the page has a neuron gallery
            where it is given, a head routes, and `num_gallery_clips` is above 0.
    """
    figures = draw_figures(inputs)
    routing = inputs.metrics["heads"][inputs.main_head].get("routing")
    answers = inputs.predictions[inputs.main_head]
    gallery = None
    if frames_of is not None and num_gallery_clips and routing and answers.neurons is not None:
        gallery = build_gallery(
            answers,
            routing["num_neurons"],
            frames_of,
            num_clips=num_gallery_clips,
            size_px=gallery_size_px,
        )
    context = _context(inputs, figures) | {"gallery": gallery, "size_px": gallery_size_px}
    html = _environment().get_template("report.html.j2").render(context)
    return Page(html, {name: _standalone(figure) for name, figure in figures.items()})


def write_report(page: Page, path: str | Path, *, write_plots: bool = True) -> list[Path]:
    """Write `page` to `path` and its plots to `plots/NAME.svg` beside it; returns the paths."""
    path = Path(path)
    write_atomic(path, page.html.encode())
    written = [path]
    for name, drawing in page.plots.items() if write_plots else ():
        written.append(path.parent / "plots" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.svg")
        write_atomic(written[-1], drawing.encode())
    return written


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dsts_pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "points": wording.signed_points,
        "swatch": swatch,
    }
    environment.globals |= {"bounds": wording.bounds}
    return environment


def _template_text(name: str) -> str:
    return (files("dsts_pipeline.report") / "templates" / name).read_text(encoding="utf-8")


def _context(inputs: ReportInputs, figures: Mapping[str, Figure]) -> dict[str, Any]:
    script = _template_text("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    provenance = inputs.metrics.get("provenance", {})
    curves = figures.get("curves")
    return {
        "inputs": inputs,
        "numbering": _Numbering(),
        "metrics": inputs.metrics,
        "main": inputs.metrics["heads"][inputs.main_head],
        "figures": figures,
        "answers": inputs.predictions[inputs.main_head],
        "lead": wording.lead_sentences(inputs),
        "pairs": wording.pair_rows(inputs),
        "classes": wording.class_rows(inputs),
        "information": _information(inputs),
        "held_out": curves is not None and any(line.faint for line in curves.legend),
        "paper_tables": PAPER_TABLES,
        "citation": CITATION,
        "origins": join_origins({"evaluation": provenance, **inputs.origins}),
        "explorer": _explorer(inputs),
        # Files of this package, not input: the only texts that go in unescaped.
        "styles": Markup(_template_text("figures.css") + _template_text("page.css")),
        "script": Markup(script),
        "script_digest": digest,
    }


def _information(inputs: ReportInputs) -> list[float]:
    """Per layer, the normalised mutual information of class and chosen neuron."""
    answers = inputs.predictions[inputs.main_head]
    routing = inputs.metrics["heads"][inputs.main_head].get("routing")
    if not routing or answers.neurons is None:
        return []
    counts = class_by_neuron(*answers.routes(), answers.num_classes, routing["num_neurons"])
    return [normalised_mutual_information(layer) for layer in counts]


def _explorer(inputs: ReportInputs) -> dict[str, Any]:
    """What the confusion explorer needs: every clip's id, class and each head's answer."""
    heads = []
    for name, _ in inputs.heads:
        answers = inputs.predictions[name]
        sureness = answers.probabilities.max(axis=1)
        heads.append(
            {
                "clips": list(answers.clip_ids),
                "labels": answers.labels.tolist(),
                "predicted": answers.predicted.tolist(),
                "sureness": [round(float(value), 3) for value in sureness],
                "neurons": None if answers.neurons is None else (answers.neurons + 1).tolist(),
            }
        )
    if all(head["clips"] == heads[0]["clips"] for head in heads):
        for head in heads[1:]:  # the usual case: say the clips once
            head["clips"], head["labels"] = None, None
    return {"classes": list(inputs.class_names), "heads": heads}


def _standalone(figure: Figure) -> str:
    """An SVG file with its own colours: light ones, since a file knows no page around it."""
    style = _template_text("figures.css")
    light = dict(re.findall(r"(--[a-z0-9-]+):\s*light-dark\(([^,()]+),", style))
    rules = style[style.index("/* marks */") :]
    rules = re.sub(r"var\((--[a-z0-9-]+)\)", lambda match: light[match[1]], rules)
    drawing, margin = figure.as_sheet(), 12.0
    width, height = drawing.width + 2 * margin, drawing.height + 2 * margin
    background = element("rect", width=width, height=height, fill=light["--paper"])
    return str(
        element(
            "svg",
            element("style", Markup(rules)),
            background,
            drawing.markup(x=margin, y=margin),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.0f} {height:.0f}",
            width=width,
            height=height,
        )
    )
