"""The paper's Tables 1 to 7 in its layout, with this run's figures and intervals beside its own.

Enters: the run's metrics and, where `ablate` has run, the content of ablation/results.json.
Leaves: one `Table` each; a figure that this run does not have is an empty cell, never the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsts_pipeline.metrics.paper import CITATION, PAPER_TABLES, PaperTable
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.tables.results import difference, with_interval
from dsts_pipeline.report.tables.table import Cell, Row, Table, cells
from dsts_pipeline.report.wording import percent, signed_points

# The variants of `ablate`, row by row of the paper's Tables 3 to 7.
VARIANTS = {
    3: ("without_sts", "without_gates", "full"),
    4: ("baseline", "without_synapse", "full"),
    5: ("without_udl", "full"),
    6: ("neurons_5", "full", "neurons_15"),
    7: ("layers_1", "full", "layers_5"),
}
NOT_RUN = "not run: python cli.py ablate"
HEADLINES = (
    ("paper: TPN, Something-Something V2", "top-1", "64.7", "67.2", "+2.5"),
    ("paper: Swin-B, Something-Something V2", "top-1", "69.6", "71.8", "+2.2"),
    ("paper: TPN, Diving48", "top-1", "86.2", "88.4", "+2.2"),
    ("paper: TPN, Diving48", "class-wise", "76.0", "78.2", "+2.2"),
    ("paper: Swin-B, Diving48", "top-1", "80.5", "83.0", "+2.5"),
    ("paper: Swin-B, Diving48", "class-wise", "69.7", "71.5", "+1.8"),
)
_KEYS = {"top-1": "top1", "top-5": "top5", "class-wise": "class_wise"}


@dataclass(frozen=True)
class _Variant:
    """One variant of ablation/results.json as the tables read it."""

    figures: Mapping[str, Any]

    def cell(self, key: str) -> Cell:
        """Mean over the seeds, with its interval."""
        found = self.figures.get(key)
        if not found or found.get("mean") is None:
            return Cell("")
        low, high = found.get("low"), found.get("high")
        known = low is not None and high is not None
        return Cell(percent(found["mean"]), f"{percent(low)} to {percent(high)}" if known else "")

    def against_reference(self) -> Cell:
        versus = self.figures.get("versus_reference")
        if not versus:
            return Cell("–")
        named = {"difference": versus["difference"]}
        named |= {f"difference_{end}": versus[end] for end in ("low", "high")}
        return difference(named)


def paper_tables(inputs: ReportInputs) -> dict[str, Table]:
    """All seven, by name ("table_1" ...)."""
    tables = []
    for paper in PAPER_TABLES:
        if paper.number in VARIANTS:
            tables.append(_ablation_table(paper, inputs.ablation))
        else:
            tables.append(_method_table(paper, inputs))
    return {table.name: table for table in tables}


def beside_table(inputs: ReportInputs) -> Table:
    """The paper's headline and this run's: backbone alone, with DSTS, and the gain."""
    rows = [Row(cells(*row)) for row in HEADLINES]
    ours, base = inputs.metrics["heads"][inputs.main_head], inputs.baseline
    if base not in (None, inputs.main_head):
        alone = inputs.metrics["heads"][base]
        apart = {"top1": difference(ours.get("versus_baseline"))}
        for name, key in (("top-1", "top1"), ("class-wise", "class_wise")):
            gain = apart.get(key) or Cell(signed_points(ours[key] - alone[key]))
            where = f"this run, {inputs.dataset or 'its own data'}"
            both = (with_interval(alone, key), with_interval(ours, key))
            rows.append(Row(cells(where, name, *both, gain), emphasised=True))
    return Table(
        name="beside",
        caption=f"What the module adds to its backbone: the paper’s figures ({CITATION}) and this "
        "run’s, percent, intervals in brackets, gains in percentage points. The paper trains "
        "full-size backbones end to end, this run a head on a frozen one; levels don’t compare.",
        columns=("set-up", "measure", "backbone alone", "with DSTS", "gain"),
        rows=tuple(rows),
        num_names=2,
    )


def _method_table(paper: PaperTable, inputs: ReportInputs) -> Table:
    """Tables 1 and 2: the paper's methods, then this run's heads."""
    rows = [Row(cells(*row), index in paper.best) for index, row in enumerate(paper.rows)]
    rows += [
        Row(
            cells(
                f"this run: {head['title']}",
                *(with_interval(head, _KEYS[column]) for column in paper.columns[1:]),
            ),
            emphasised=name == inputs.main_head,
        )
        for name, head in inputs.heads
    ]
    data = inputs.dataset or "its own data set"
    return Table(
        name=f"table_{paper.number}",
        title=f"The paper’s Table {paper.number}.",
        caption=f"{paper.about.capitalize()}; {paper.dataset}, percent, as printed in {CITATION}. "
        f"Below them this run, on {data} ({inputs.metrics['split']} split), with intervals in "
        "brackets: other data and another backbone, so compare steps, not levels.",
        columns=paper.columns,
        rows=tuple(rows),
    )


def _ablation_table(paper: PaperTable, ablation: Mapping[str, Any] | None) -> Table:
    """Tables 3 to 7: the paper's variants, and the same variants measured here."""
    variants = {} if ablation is None else ablation.get("variants", {})
    measured = [variants.get(name) for name in VARIANTS[paper.number]]
    figures = [column for column in paper.columns if column in _KEYS]
    rows = []
    for index, (printed, found) in enumerate(zip(paper.rows, measured, strict=True)):
        own = () if ablation is None else _own_cells(found, figures)
        rows.append(Row((*cells(*printed), *own), index in paper.best))
    ours: tuple[str, ...] = ()
    if ablation is not None:
        ours = (*(f"ours: {column}" for column in figures), "ours: parameters", "against full")
    return Table(
        name=f"table_{paper.number}",
        title=f"The paper’s Table {paper.number}.",
        caption=f"{paper.about.capitalize()}; {paper.dataset}, percent, as printed in {CITATION}. "
        + _ablation_caption(ablation, measured),
        columns=(*paper.columns, *ours),
        rows=tuple(rows),
    )


def _own_cells(variant: Mapping[str, Any] | None, columns: Sequence[str]) -> tuple[Cell, ...]:
    if variant is None:
        return cells(*[""] * (len(columns) + 2))
    found, count = _Variant(variant), variant.get("num_parameters")
    measured = [found.cell(_KEYS[column]) for column in columns]
    return cells(*measured, f"{count:,}" if count else "", found.against_reference())


def _ablation_caption(
    ablation: Mapping[str, Any] | None, measured: Sequence[Mapping[str, Any] | None]
) -> str:
    if ablation is None:
        return f"Ours: {NOT_RUN}."
    seeds = len(ablation.get("seeds") or ())
    text = (
        f"Ours: mean over {seeds} seed{'s' if seeds != 1 else ''} on the {ablation['split']} "
        "split, intervals in brackets; the last column is the paired difference in top-1 to the "
        "full model, in percentage points."
    )
    if any(found is None for found in measured):
        text += f" An empty cell: {NOT_RUN}."
    return text
