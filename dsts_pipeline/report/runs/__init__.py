"""Several runs on one page: the same clips, compared clip by clip."""

from dsts_pipeline.report.runs.inputs import Run, check_runs
from dsts_pipeline.report.runs.page import render_comparison

__all__ = ["Run", "check_runs", "render_comparison"]
