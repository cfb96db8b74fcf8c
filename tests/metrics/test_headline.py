"""The headline: few figures, the right ones."""

from __future__ import annotations

from dsts_pipeline.metrics import headline_figures


def test_headline_keeps_accuracies_and_denominators_alone():
    head = {"top1": 0.5, "top5": 0.9, "class_wise": 0.4, "title": "x"}
    metrics = {"heads": {"dsts": head}, "evaluated": 7, "failed": 1, "missing": 2, "store": "f"}
    assert headline_figures(metrics) == {
        "dsts": {"top1": 0.5, "class_wise": 0.4},
        "evaluated": 7,
        "failed": 1,
        "missing": 2,
    }
