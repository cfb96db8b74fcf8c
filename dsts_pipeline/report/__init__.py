"""Numbers -> page: one self-contained HTML file with tables, plots and provenance."""

from dsts_pipeline.report.inputs import Failure, ReportInputs
from dsts_pipeline.report.page import Page, PreviewOptions, render_report, write_report
from dsts_pipeline.report.previews import NUM_FRAMES
from dsts_pipeline.report.runs import Run, render_comparison

__all__ = [
    "NUM_FRAMES",
    "Failure",
    "Page",
    "PreviewOptions",
    "ReportInputs",
    "Run",
    "render_comparison",
    "render_report",
    "write_report",
]
