"""Figures of calibration: what the heads' probabilities are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsts_pipeline.report.figures.drawn import Figure
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.plots.scatter import Bin, confidence_chart, reliability_chart


def reliability_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """One figure where the evaluation measured calibration, else none."""
    heads = []
    for name, head in inputs.heads:
        if head.get("calibration"):
            rows = head["calibration"]["equal_width"]["bins"]
            bins = [_bin(row) for row in rows]
            heads.append((head["title"], inputs.number_of(name), bins))
    if not heads:
        return {}
    return {"reliability": Figure((reliability_chart(heads), confidence_chart(heads)), columns=2)}


def _bin(row: Mapping[str, Any]) -> Bin:
    return Bin(
        confidence=100 * row["confidence"],
        accuracy=100 * row["accuracy"],
        low=100 * row["accuracy_low"],
        high=100 * row["accuracy_high"],
        clips=row["clips"],
    )
