"""The table of calibration: errors beside what chance alone would give."""

from __future__ import annotations

from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.tables.table import Cell, Row, Table, cells
from dsts_pipeline.report.wording import percent


def calibration_table(inputs: ReportInputs) -> Table:
    """A row per head that has figures of calibration."""
    rows = []
    for name, head in inputs.heads:
        found = head.get("calibration")
        if not found:
            continue
        bins = found["equal_width"]
        rows.append(
            Row(
                cells(
                    head["title"],
                    percent(found["mean_confidence"]),
                    percent(head["top1"]),
                    percent(bins["ece"]),
                    Cell(
                        percent(bins["ece_if_calibrated"]),
                        f"up to {percent(bins['ece_if_calibrated_high'])}",
                    ),
                    percent(found["equal_count"]["ece"]),
                    percent(bins["max_error"]),
                    f"{head['nll']:.3f}",
                    f"{head['brier']:.3f}",
                ),
                emphasised=name == inputs.main_head,
            )
        )
    return Table(
        name="calibration",
        caption="Calibration, percent: mean confidence beside the share that is right; expected "
        "calibration error (ECE) in bins of the same width, and what it would be by chance alone "
        "for a head whose confidence is exactly right (an ECE below the bound in brackets is no "
        "evidence against it); ECE in bins of as many clips; the largest gap of a bin. NLL in "
        "nats, Brier score 0 to 2.",
        columns=(
            "head",
            "confidence",
            "top-1",
            "ECE",
            "if calibrated",
            "ECE, equal counts",
            "largest gap",
            "NLL",
            "Brier",
        ),
        rows=tuple(rows),
    )
