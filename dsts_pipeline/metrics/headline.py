"""The few figures that fit one line of a terminal, for `dvc metrics show` and `dvc exp show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def headline_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 and class-wise accuracy by head, and how many clips they rest on.

    Args:
        metrics: what `assemble_metrics` returns.

    Returns:
        {head: {"top1", "class_wise"}, ..., "evaluated", "failed", "missing"}; fractions, 0..1.
    """
    figures: dict[str, Any] = {
        name: {"top1": head["top1"], "class_wise": head["class_wise"]}
        for name, head in metrics["heads"].items()
    }
    return figures | {name: metrics[name] for name in ("evaluated", "failed", "missing")}
