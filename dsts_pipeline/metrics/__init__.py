"""Logits -> numbers: accuracy with intervals, calibration, comparisons, routing.

`scoring.py` runs saved heads over maps and `predictions.py` keeps their answers in files; all else
is pure functions on numpy arrays. Torch is imported by `scoring.py` alone, which is not imported
here: a report needs numbers, no heads.
"""

from dsts_pipeline.metrics.comparison import compare_predictions
from dsts_pipeline.metrics.intervals import Bootstrap, Interval, paired_difference
from dsts_pipeline.metrics.predictions import (
    Denominators,
    HeadResult,
    Predictions,
    align,
    average_views,
    count_views,
    softmax,
)
from dsts_pipeline.metrics.routing import assemble_routing
from dsts_pipeline.metrics.summary import (
    assemble_metrics,
    headline_figures,
    plot_tables,
    print_results,
    results_table,
)

__all__ = [
    "Bootstrap",
    "Denominators",
    "HeadResult",
    "Interval",
    "Predictions",
    "align",
    "assemble_metrics",
    "assemble_routing",
    "average_views",
    "compare_predictions",
    "count_views",
    "headline_figures",
    "paired_difference",
    "plot_tables",
    "print_results",
    "results_table",
    "softmax",
]
