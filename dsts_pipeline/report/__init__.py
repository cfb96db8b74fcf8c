"""Numbers -> page: one self-contained HTML file with tables, plots and provenance."""

from dsts_pipeline.report.inputs import Failure, ReportInputs
from dsts_pipeline.report.page import Page, PreviewOptions, render_report, write_report
from dsts_pipeline.report.previews import NUM_FRAMES

__all__ = [
    "NUM_FRAMES",
    "Failure",
    "Page",
    "PreviewOptions",
    "ReportInputs",
    "render_report",
    "write_report",
]
