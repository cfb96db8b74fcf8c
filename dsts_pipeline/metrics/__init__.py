"""Logits -> numbers: accuracy with intervals, confusion, routing, predictions on disk.

A folder of pure functions on numpy arrays; only `predictions.py` touches files.
"""

from dsts_pipeline.metrics.headline import headline_figures
from dsts_pipeline.metrics.intervals import Bootstrap, Interval, paired_difference
from dsts_pipeline.metrics.predictions import Predictions, align, softmax
from dsts_pipeline.metrics.summary import Denominators, HeadResult, assemble_metrics
from dsts_pipeline.metrics.table import results_table
from dsts_pipeline.metrics.views import average_views, count_views

__all__ = [
    "Bootstrap",
    "Denominators",
    "HeadResult",
    "Interval",
    "Predictions",
    "align",
    "assemble_metrics",
    "average_views",
    "count_views",
    "headline_figures",
    "paired_difference",
    "results_table",
    "softmax",
]
