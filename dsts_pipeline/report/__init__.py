"""Numbers -> page: one self-contained HTML file with tables, plots and provenance."""

from dsts_pipeline.report.inputs import Failure, ReportInputs
from dsts_pipeline.report.page import Page, render_report, write_report

__all__ = ["Failure", "Page", "ReportInputs", "render_report", "write_report"]
