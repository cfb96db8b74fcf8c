"""Figures of calibration: what the heads' probabilities are worth."""

from __future__ import annotations

from dsts_pipeline.report.figures.drawn import Figure
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.plots.scatter import Bin, confidence_chart, reliability_chart

_SHARES = ("confidence", "accuracy", "accuracy_low", "accuracy_high")


def reliability_figures(inputs: ReportInputs) -> dict[str, Figure]:
    """One figure where the evaluation measured calibration, else none."""
    heads = []
    for name, head in inputs.heads:
        if head.get("calibration"):
            rows = head["calibration"]["equal_width"]["bins"]
            bins = [Bin(*(100 * row[key] for key in _SHARES), row["clips"]) for row in rows]
            heads.append((head["title"], inputs.number_of(name), bins))
    if not heads:
        return {}
    return {"reliability": Figure((reliability_chart(heads), confidence_chart(heads)), columns=2)}
