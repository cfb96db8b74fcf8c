"""A table, defined once: HTML in the page, Markdown and LaTeX files for papers.

Enters: texts. Leaves: texts in which everything that means something to the format is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsts_pipeline.metrics.ablation import CITATION, PAPER_TABLES, PaperTable
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.wording import (
    MINUS,
    bounds,
    class_rows,
    p_value,
    pair_rows,
    percent,
    signed_points,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
}


@dataclass(frozen=True)
class Cell:
    """A figure or a name, and what stands smaller behind it, such as its interval."""

    text: str
    detail: str = ""

    def plain(self) -> str:
        """Both in one line."""
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Row:
    """Cells from left to right; an emphasised row is the one that the table is about."""

    cells: tuple[Cell, ...]
    emphasised: bool = False


@dataclass(frozen=True)
class Table:
    """Rows below named columns.

    Args:
        name: of its files, such as "table_3".
        title: what comes first in the caption, such as "The paper's Table 3."; empty for tables
            that are numbered with the page.
        caption: one or a few sentences.
        columns: names; all but the first `num_names` hold figures and are set to the right.
        rows: as long as `columns` each.
        num_names: columns at the left that hold names.
        kind: a class of the page's styles, such as "dense".

    Raises:
        ValueError: A row has another length than the columns.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    title: str = ""
    num_names: int = 1
    kind: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"table {self.name}: row {row} for columns {self.columns}")


def cells(*values: str | Cell) -> tuple[Cell, ...]:
    """Texts as cells."""
    return tuple(value if isinstance(value, Cell) else Cell(value) for value in values)


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, emphasised rows in bold."""
    marks = [":--" if i < table.num_names else "--:" for i in range(len(table.columns))]
    lines = [f"**{_markdown(table.title)}** " if table.title else "", _markdown(table.caption)]
    body = [[_markdown(cell.plain()) for cell in row.cells] for row in table.rows]
    for row, texts in zip(table.rows, body, strict=True):
        if row.emphasised:
            texts[:] = [f"**{text}**" if text else "" for text in texts]
    rows = [[_markdown(name) for name in table.columns], marks, *body]
    grid = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "".join(lines) + "\n\n" + grid + "\n"


def to_latex(table: Table) -> str:
    """The table as a LaTeX `table` with booktabs' rules."""
    layout = "l" * table.num_names + "r" * (len(table.columns) - table.num_names)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_latex(' '.join(filter(None, (table.title, table.caption))))}}}",
        f"\\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name.lower())}}}",
        f"\\begin{{tabular}}{{{layout}}}",
        "\\toprule",
        _latex_row([_latex(name) for name in table.columns]),
        "\\midrule",
    ]
    for row in table.rows:
        texts = [_latex(cell.plain()) for cell in row.cells]
        if row.emphasised:
            texts = [f"\\textbf{{{text}}}" for text in texts]
        lines.append(_latex_row(texts))
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def table_files(tables: Mapping[str, Table] | Sequence[Table]) -> dict[str, str]:
    """File names and contents of all tables, each in both formats."""
    found = list(tables.values()) if isinstance(tables, Mapping) else list(tables)
    texts = {f"{table.name}.md": to_markdown(table) for table in found}
    return texts | {f"{table.name}.tex": to_latex(table) for table in found}


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _markdown(text: str) -> str:
    # Markdown lets HTML through: the brackets and the ampersand become entities.
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


# ---- The run's own tables: heads, confused pairs, classes, failures. ----------------------------


def result_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Tables by name; one that the run has no rows for is left out."""
    tables = (_results(inputs), _pairs(inputs), _classes(inputs), _failures(inputs))
    return {table.name: table for table in tables if table.rows}


def _results(inputs: ReportInputs) -> Table:
    interval = inputs.metrics.get("interval")
    made = f" ({interval['method']}, {interval['num_resamples']:,} resamples)" if interval else ""
    return Table(
        name="results",
        caption=f"Results in percent, intervals in brackets{made}. The last column is the paired "
        "difference in top-1 on the same clips, in percentage points. Parameters are those of the "
        "head alone.",
        columns=("head", "top-1", "top-5", "class-wise", "parameters", "against baseline"),
        rows=tuple(
            Row(
                cells(
                    head["title"],
                    with_interval(head, "top1"),
                    with_interval(head, "top5"),
                    with_interval(head, "class_wise"),
                    f"{head['num_parameters']:,}",
                    difference(head.get("versus_baseline")),
                ),
                emphasised=name == inputs.main_head,
            )
            for name, head in inputs.heads
        ),
    )


def with_interval(figures: Mapping[str, Any], key: str) -> Cell:
    """A fraction in percent with its interval, where it has one; empty if there is none."""
    if figures.get(key) is None:
        return Cell("")
    return Cell(percent(figures[key]), bounds(figures, key) if f"{key}_low" in figures else "")


def difference(versus: Mapping[str, Any] | None) -> Cell:
    """A paired difference in points with its interval."""
    if not versus:
        return Cell("–")
    value, low, high = (signed_points(versus[f"difference{end}"]) for end in ("", "_low", "_high"))
    return Cell(value, f"{low} to {high}")


def _pairs(inputs: ReportInputs) -> Table:
    pairs = pair_rows(inputs)
    beside = bool(pairs) and pairs[0]["baseline"] is not None
    differ = ("they differ in",) if inputs.attributes else ()
    columns = ("first", "second", *differ, "1st as 2nd", "2nd as 1st", "share, %")
    title = inputs.metrics["heads"][inputs.main_head]["title"]
    return Table(
        name="pairs",
        caption=f"The pairs of classes that {title} confuses most: clips of the first taken for "
        "the second, of the second for the first, and both as a share of the clips of the two "
        "classes"
        + ("; beside it, how often the baseline confuses the same pair." if beside else "."),
        columns=(*columns, "baseline") if beside else columns,
        rows=tuple(
            Row(
                cells(
                    pair["first"],
                    pair["second"],
                    *((pair["differs"],) if inputs.attributes else ()),
                    str(pair["forth"]),
                    str(pair["back"]),
                    pair["share"],
                    *((str(pair["baseline"]),) if beside else ()),
                )
            )
            for pair in pairs
        ),
        num_names=2 + len(differ),
        kind="names",
    )


def _classes(inputs: ReportInputs) -> Table:
    heads = tuple(head["title"] for _, head in inputs.heads)
    return Table(
        name="classes",
        caption="Percent of each class’s clips that each head gets right.",
        columns=("class", "no.", "clips", *heads),
        rows=tuple(
            Row(
                cells(
                    row["name"],
                    str(row["number"]),
                    str(row["count"]),
                    *(value or "no clips" for value in row["accuracies"]),
                )
            )
            for row in class_rows(inputs)
        ),
        kind="dense",
    )


def _failures(inputs: ReportInputs) -> Table:
    return Table(
        name="failures",
        caption=f"{len(inputs.failures)} clips of all splits could not be used. None was replaced "
        "by another clip.",
        columns=("clip", "split", "lost at", "reason"),
        rows=tuple(
            Row(cells(failure.clip_id, failure.split, failure.stage, failure.reason))
            for failure in inputs.failures
        ),
        num_names=4,
        kind="dense",
    )


# ---- The table of calibration: errors beside what chance alone would give. ----------------------


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


# ---- ------------------------------------------------------------------------------------------
# The paper's Tables 1 to 7 in its layout, with this run's figures and intervals beside its own.
#
# Enters: the run's metrics and, where `ablate` has run, the content of ablation/results.json.
# Leaves: one `Table` each; a figure that this run does not have is an empty cell, never the
# paper's.

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


# ---- Tables of the routing analysis: what neurons serve beside chance, need of time, hard pairs.
#
# Enters: the content of routing.json (docs/results-format.md). Leaves: tables of the main head.


def routing_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Tables by name; none where routing.json has nothing about the main head."""
    head = inputs.routing_of_main
    if head is None:
        return {}
    tables = [_information(head), _similarity(head), _gates(head), _views(head)]
    pairs = head.get("hard_pairs")
    if pairs:
        tables += [
            _pairs_of_routing(inputs, pairs, "separated"),
            _pairs_of_routing(inputs, pairs, "merged"),
        ]
    return {table.name: table for table in tables if table.rows}


def _information(head: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            cells(
                f"layer {number}",
                group,
                f"{found['nmi']:.3f}",
                Cell(f"{found['nmi_null']:.3f}", f"up to {found['nmi_null_high']:.3f}"),
                f"{found['adjusted']:.3f}",
                p_value(found["p"]),
            )
        )
        for number, layer in enumerate(head["layers"], start=1)
        for group, found in sorted(
            layer["information"].items(), key=lambda item: item[0] != "class"
        )
    ]
    return Table(
        name="information",
        caption="What the choice of neuron tells of class and attributes: normalised mutual "
        "information (0: nothing, 1: each tells the other), the same for routes dealt to clips at "
        "random (mean, 95 % point), the information adjusted for chance (0 on average for random "
        "routes), and p by permutation.",
        columns=("layer", "of", "NMI", "by chance", "adjusted", "p"),
        rows=tuple(rows),
        num_names=2,
        kind="dense",
    )


def _similarity(head: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            cells(
                f"layer {number}",
                _cosine(found["within"]),
                _cosine(found["across"]),
                Cell(_cosine(found["within_null"]), f"up to {_cosine(found['within_null_high'])}"),
                p_value(found["p"]),
                " / ".join(_cosine(value, 2) for value in found["per_neuron"]),
            )
        )
        for number, layer in enumerate(head["layers"], start=1)
        if (found := layer.get("similarity"))
    ]
    return Table(
        name="similarity",
        caption="How alike the clips of one neuron are: mean cosine of their centred, pooled "
        "feature maps, within neurons and across them, for routes dealt at random (mean, 95 % "
        "point), and neuron by neuron.",
        columns=("layer", "within", "across", "by chance", "p", "neuron by neuron"),
        rows=tuple(rows),
        kind="dense",
    )


def _cosine(value: float | None, num_digits: int = 3) -> str:
    """A dash where there is none: one neuron has no clips across, one clip none within."""
    return "–" if value is None else f"{value:.{num_digits}f}"


def _gates(head: Mapping[str, Any]) -> Table:
    rows = []
    for number, layer in enumerate(head["layers"], start=1):
        gates = layer.get("gates")
        if not gates or gates.get("class_need") is None:
            continue
        found = _signed(gates["rank_correlation"])
        rows.append(Row(cells(f"layer {number}", found, p_value(gates["p"]))))
    return Table(
        name="gates",
        caption="Do gates open to time where the classes need it? Rank correlation, over the "
        "neurons of a layer, of the temporal share of a neuron’s channels with the mean need of "
        "time of the classes that it serves. Need: how much probability of the true class is lost "
        "when a clip’s time steps are put in random order or averaged.",
        columns=("layer", "rank correlation", "p"),
        rows=tuple(rows),
    )


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", MINUS)


def _views(head: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            cells(
                f"layer {number}",
                f"{found['clips']:,}",
                percent(found["changed"]),
                percent(found["pairs_apart"]),
                percent(found["pairs_apart_null"]),
            )
        )
        for number, layer in enumerate(head["layers"], start=1)
        if (found := layer.get("view_changes"))
    ]
    return Table(
        name="view_changes",
        caption="How often the choice changes between views of one clip, percent: clips whose "
        "views do not all take the same neuron, pairs of views that differ, and the same for "
        "views routed without regard to their clip.",
        columns=("layer", "clips", "changed", "pairs apart", "by chance"),
        rows=tuple(rows),
    )


def _pairs_of_routing(inputs: ReportInputs, found: Mapping[str, Any], kind: str) -> Table:
    base = (inputs.routing or {}).get("baseline")
    name = inputs.metrics["heads"].get(base, {}).get("title", base)
    what = "apart better" if kind == "separated" else "apart worse"
    return Table(
        name=f"pairs_{kind}",
        caption=f"Pairs of classes that the head keeps {what} than {name}: clips of the two that "
        "each confuses, the difference of the shares in percentage points (paired interval), and "
        f"exact McNemar p, corrected by Holm for the {found['num_tested']} pairs that could "
        "differ. Intervals are not adjusted for having picked the most striking pairs.",
        columns=("first", "second", "clips", "baseline", "head", "difference", "p", "p (Holm)"),
        rows=tuple(
            Row(
                cells(
                    *pair["names"],
                    str(pair["clips"]),
                    str(pair["baseline_confused"]),
                    str(pair["head_confused"]),
                    difference(pair),
                    p_value(pair["p"]),
                    p_value(pair["p_holm"]),
                )
            )
            for pair in found[kind][: inputs.num_confused_pairs]
        ),
        num_names=2,
        kind="dense",
    )


# ---- All tables of the page, by name: they are also written as Markdown and LaTeX files. --------


def make_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Tables by name; one that the run has no rows for is left out."""
    calibration = calibration_table(inputs)
    return (
        result_tables(inputs)
        | ({calibration.name: calibration} if calibration.rows else {})
        | routing_tables(inputs)
        | {"beside": beside_table(inputs)}
        | paper_tables(inputs)
    )
