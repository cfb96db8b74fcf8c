"""The page about several runs; see `report/page.py` for the page about one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsts_pipeline.metrics import Bootstrap
from dsts_pipeline.report.document import render_document
from dsts_pipeline.report.page import Page, route_information
from dsts_pipeline.report.runs.figures import comparison_figures
from dsts_pipeline.report.runs.inputs import Run, check_runs
from dsts_pipeline.report.runs.tables import comparison_tables

TITLE = "Dynamic spatio-temporal specialization: runs compared"


def render_comparison(runs: Sequence[Run], bootstrap: Bootstrap) -> Page:
    """Draw and write out the page; the first run is what the others are compared with.

    Raises:
        DataError: The runs can't be compared; see `check_runs`.
    """
    check_runs(runs)
    figures, tables = comparison_figures(runs), comparison_tables(runs, bootstrap)
    routed = any(name.startswith("neurons_") for name in figures)
    tabs = (
        ("summary", "Summary", True),
        ("learning", "Curves", "curves" in figures),
        ("errors", "Confusion", True),
        ("routing", "Routing", routed),
        ("run", "Settings", True),
    )
    context: dict[str, Any] = {
        "title": TITLE,
        "runs": runs,
        "figures": figures,
        "tables": tables,
        "information": [route_information(run.inputs) for run in runs],
        "tabs": [(name, title) for name, title, there in tabs if there],
        "data": {"classes": [], "heads": []},
    }
    return Page(render_document("compare.html.j2", context), figures, tables)
