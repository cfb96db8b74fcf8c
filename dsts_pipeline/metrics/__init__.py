"""Logits -> numbers: accuracy with intervals, calibration, comparisons, routing.

`scoring.py` runs saved heads over maps and `predictions.py` keeps their answers in files; all else
is pure functions on numpy arrays.
"""

from dsts_pipeline.metrics.comparison import compare_predictions
from dsts_pipeline.metrics.headline import headline_figures
from dsts_pipeline.metrics.heads import Denominators, HeadResult
from dsts_pipeline.metrics.intervals import Bootstrap, Interval, paired_difference
from dsts_pipeline.metrics.plot_tables import plot_tables
from dsts_pipeline.metrics.predictions import Predictions, align, softmax
from dsts_pipeline.metrics.routing.summary import RoutingOptions, assemble_routing
from dsts_pipeline.metrics.summary import assemble_metrics
from dsts_pipeline.metrics.table import print_results, results_table
from dsts_pipeline.metrics.time_axis import disturb_time
from dsts_pipeline.metrics.views import average_views, count_views

__all__ = [
    "Bootstrap",
    "Denominators",
    "HeadResult",
    "Interval",
    "Predictions",
    "RoutingOptions",
    "align",
    "assemble_metrics",
    "assemble_routing",
    "average_views",
    "compare_predictions",
    "count_views",
    "disturb_time",
    "headline_figures",
    "paired_difference",
    "plot_tables",
    "print_results",
    "results_table",
    "softmax",
]
