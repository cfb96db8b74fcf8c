"""The tables of a page, each defined once: HTML in the page, Markdown and LaTeX files for papers.

Enters: `ReportInputs`. Leaves: tables by name, and files in which everything that means something
to their format is escaped. A figure that a run does not have is an empty cell, never the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dsts_pipeline.metrics.ablation import (
    CITATION,
    METHODS,
    PAPER_ROWS,
    PAPER_SYSTEMS,
    PAPER_TABLES,
    PaperTable,
    p_text,
    tell_choice,
)
from dsts_pipeline.metrics.accuracy import hardest_pairs, per_class_accuracy
from dsts_pipeline.report.inputs import PAPERS_DATASETS, ReportInputs

# What has a place on the page of one run, for itself or for the sentence why it is left out.
PLACES = (
    "temporal_need",
    *("results", "pairs", "classes", "failures", "calibration", "beside"),
    *("information", "similarity", "gates", "view_changes", "pairs_separated", "pairs_merged"),
)


def make_tables(inputs: ReportInputs, num_pairs: int) -> dict[str, Table]:
    """Tables of the page about one run, by name; one that the run has no rows for is left out.

    The paper's stand in the page of a run on the paper's data, all seven with the summary's; on
    other data those alone whose variants `ablate` has measured there.

    Args:
        num_pairs: how many of the hardest pairs of classes are listed.
    """
    own = [_results(inputs), _pairs(inputs, num_pairs), _classes(inputs), _failures(inputs)]
    own += [_calibration(inputs), *_routing_tables(inputs, num_pairs)]
    papers: list[Table] = []
    if inputs.dataset in PAPERS_DATASETS:
        papers = [beside_table(inputs), *paper_tables(inputs).values()]
    elif inputs.ablation is not None:
        measured = inputs.ablation.get("variants", {})
        papers = [
            _ablation_table(paper, inputs.ablation)
            for paper in PAPER_TABLES
            if any(name in measured and name != "full" for name in PAPER_ROWS.get(paper.number, ()))
        ]
    if inputs.dataset not in PAPERS_DATASETS and any(n in PAPER_SYSTEMS for n, _ in inputs.heads):
        papers += [_method_table(paper, inputs) for paper in PAPER_TABLES[:2]]
    tables = {table.name: table for table in [*own, *papers] if table.rows}
    left_out = {*inputs.left_out, *(("gates",) if "temporal_need" in inputs.left_out else ())}
    return {name: table for name, table in tables.items() if name not in left_out}


# ---- a table and its formats --------------------------------------------------------------------


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


def row(*values: str | Cell, emphasised: bool = False) -> Row:
    """A row of texts and cells."""
    cells = tuple(value if isinstance(value, Cell) else Cell(value) for value in values)
    return Row(cells, emphasised)


@dataclass(frozen=True)
class Table:
    """Rows below named columns.

    Args:
        name: of its files, such as "table_3".
        caption: one or a few sentences.
        columns: names; all but the first `num_names` hold figures and are set to the right.
        rows: as long as `columns` each.
        title: what comes first in the caption, such as "The paper's Table 3."; empty for tables
            that are numbered with the page.
        num_names: columns at the left that hold names.
        kind: a class of the page's styles, such as "dense".

    Raises:
        ValueError: A row has another length than the columns.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    num_names: int = 1
    kind: str = ""

    def __post_init__(self) -> None:
        for one in self.rows:
            if len(one.cells) != len(self.columns):
                raise ValueError(f"table {self.name}: row {one} for columns {self.columns}")


def table_files(tables: Mapping[str, Table]) -> dict[str, str]:
    """File names and contents of all tables, each in both formats."""
    texts = {f"{table.name}.md": to_markdown(table) for table in tables.values()}
    return texts | {f"{table.name}.tex": to_latex(table) for table in tables.values()}


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, emphasised rows in bold."""
    marks = [":--" if i < table.num_names else "--:" for i in range(len(table.columns))]
    rows = [[_markdown(name) for name in table.columns], marks]
    for one in table.rows:
        texts = [_markdown(cell.plain()) for cell in one.cells]
        rows.append([f"**{t}**" if t and one.emphasised else t for t in texts])
    title = f"**{_markdown(table.title)}** " if table.title else ""
    grid = "\n".join("| " + " | ".join(texts) + " |" for texts in rows)
    return f"{title}{_markdown(table.caption)}\n\n{grid}\n"


def _markdown(text: str) -> str:
    # Markdown lets HTML through: the brackets and the ampersand become entities.
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


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
    for one in table.rows:
        texts = [_latex(cell.plain()) for cell in one.cells]
        lines.append(_latex_row([f"\\textbf{{{t}}}" if one.emphasised else t for t in texts]))
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


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


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


# ---- figures as people read them ----------------------------------------------------------------

MINUS = "\N{MINUS SIGN}"
SIGNIFICANT = 0.05
p_value = partial(p_text, dash="–")


def percent(value: float) -> str:
    """A fraction as percent with one digit, without the sign."""
    return f"{100 * value:.1f}"


def signed_points(value: float) -> str:
    """A difference of fractions in percentage points, always with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", MINUS)


def bounds(figures: Mapping[str, Any], name: str) -> str:
    """Such as "68.6 to 73.8" for the interval of `name`."""
    return f"{percent(figures[f'{name}_low'])} to {percent(figures[f'{name}_high'])}"


def with_interval(figures: Mapping[str, Any], key: str) -> Cell:
    """A fraction in percent with its interval, where it has one; empty if there is none."""
    if figures.get(key) is None:
        return Cell("")
    return Cell(percent(figures[key]), bounds(figures, key) if f"{key}_low" in figures else "")


def difference(versus: Mapping[str, Any] | None) -> Cell:
    """A paired difference in points with its interval."""
    if not versus:
        return Cell("–")
    value = signed_points(versus["difference"])
    if versus.get("difference_low") is None:
        return Cell(value)
    low, high = (signed_points(versus[f"difference_{end}"]) for end in ("low", "high"))
    return Cell(value, f"{low} to {high}")


# ---- the run's own: heads, confused pairs, classes, failures, calibration -----------------------


def _results(inputs: ReportInputs) -> Table:
    interval = None if "intervals" in inputs.left_out else inputs.metrics.get("interval")
    made = ""
    if interval:
        how = f"{interval['method']}, {interval['num_resamples']:,} resamples"
        made = f", intervals in brackets ({how})"
    top5 = ("top-5",) if inputs.has_top5 else ()
    figures = ("top-1", *top5, "class-wise")
    against: tuple[str, ...] = ()
    about = ""
    if any(head.get("versus_baseline") for _, head in inputs.heads):
        against = ("against baseline",)
        about = (
            " The last column is the paired difference in top-1 on the same clips, in percentage "
            "points."
        )
    return Table(
        name="results",
        caption=f"Results in percent{made}.{about} Parameters are those of the head alone.",
        columns=("head", *figures, "parameters", *against),
        rows=[
            row(
                head["title"],
                *(with_interval(head, KEYS[name]) for name in figures),
                f"{head['num_parameters']:,}",
                *(difference(head.get("versus_baseline")) for _ in against),
                emphasised=key == inputs.main_head,
            )
            for key, head in inputs.heads
        ],
    )


def _pairs(inputs: ReportInputs, num_pairs: int) -> Table:
    """The pairs of classes that the main head confuses most, beside the baseline's count."""
    names = inputs.class_names
    beside = inputs.baseline not in (None, inputs.main_head)
    of_baseline = inputs.confusion(str(inputs.baseline)) if beside else None
    rows = []
    for pair in hardest_pairs(inputs.confusion(inputs.main_head), num_pairs):
        i, j = pair.first, pair.second
        texts = [names[i], names[j], *((_differing(inputs, i, j),) if inputs.attributes else ())]
        texts += [str(pair.first_as_second), str(pair.second_as_first), percent(pair.share)]
        if of_baseline is not None:
            texts.append(str(int(of_baseline[i, j] + of_baseline[j, i])))
        rows.append(row(*texts))
    differ = ("they differ in",) if inputs.attributes else ()
    columns = ("first", "second", *differ, "1st as 2nd", "2nd as 1st", "share, %")
    return Table(
        name="pairs",
        caption=f"The pairs of classes that {inputs.main['title']} "
        "confuses most: clips of the first taken for the second, of the second for the first, and "
        "both as a share of the clips of the two classes"
        + ("; beside it, how often the baseline confuses the same pair." if beside else "."),
        columns=(*columns, "baseline") if beside else columns,
        rows=rows,
        num_names=2 + len(differ),
        kind="names",
    )


def _differing(inputs: ReportInputs, first: int, second: int) -> str:
    values = zip(inputs.attributes[first], inputs.attributes[second], strict=True)
    return ", ".join(
        f"{name} ({one} / {two})"
        for name, (one, two) in zip(inputs.attribute_names, values, strict=True)
        if one != two
    )


def _classes(inputs: ReportInputs) -> Table:
    num_classes = len(inputs.class_names)
    columns = []
    for name, _ in inputs.heads:
        answers = inputs.predictions[name]
        hits = answers.predicted == answers.labels
        columns.append(per_class_accuracy(hits, answers.labels, num_classes))
    counts = np.bincount(inputs.predictions[inputs.main_head].labels, minlength=num_classes)
    return Table(
        name="classes",
        caption="Percent of each class’s clips that each head gets right.",
        columns=("class", "no.", "clips", *(head["title"] for _, head in inputs.heads)),
        rows=[
            row(
                name,
                str(k + 1),
                str(counts[k]),
                *("no clips" if np.isnan(column[k]) else percent(column[k]) for column in columns),
            )
            for k, name in enumerate(inputs.class_names)
        ],
        kind="dense",
    )


def _failures(inputs: ReportInputs) -> Table:
    return Table(
        name="failures",
        caption=f"{len(inputs.failures)} clips of all splits could not be used. None was replaced "
        "by another clip.",
        columns=("clip", "split", "lost at", "reason"),
        rows=[row(one.clip_id, one.split, one.stage, one.reason) for one in inputs.failures],
        num_names=4,
        kind="dense",
    )


def _calibration(inputs: ReportInputs) -> Table:
    """Errors beside what chance alone would give."""
    rows = []
    for name, head in inputs.heads:
        found = head.get("calibration")
        if not found or "calibration" in inputs.left_out:
            continue
        bins = found["equal_width"]
        by_chance = f"up to {percent(bins['ece_if_calibrated_high'])}"
        rows.append(
            row(
                head["title"],
                percent(found["mean_confidence"]),
                percent(head["top1"]),
                percent(bins["ece"]),
                Cell(percent(bins["ece_if_calibrated"]), by_chance),
                percent(found["equal_count"]["ece"]),
                percent(bins["max_error"]),
                f"{head['nll']:.3f}",
                f"{head['brier']:.3f}",
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
            *("head", "confidence", "top-1", "ECE", "if calibrated", "ECE, equal counts"),
            *("largest gap", "NLL", "Brier"),
        ),
        rows=rows,
    )


# ---- routing: what neurons serve beside chance, need of time, hard pairs ------------------------


def _routing_tables(inputs: ReportInputs, num_pairs: int) -> list[Table]:
    """None where routing.json has nothing about the main head."""
    head = inputs.routing_of_main
    if head is None:
        return []
    layers = list(enumerate(head["layers"], start=1))
    tables = []
    if inputs.num_neurons:
        tables = [
            _information(layers),
            _similarity(layers, tested="information" not in inputs.left_out),
            *([_gates(layers)] if inputs.has_gates else []),
            _view_changes(layers),
        ]
    pairs = head.get("hard_pairs")
    if pairs:
        tables += [_hard_pairs(inputs, pairs, kind, num_pairs) for kind in ("separated", "merged")]
    return tables


Layers = Sequence[tuple[int, Mapping[str, Any]]]


def _information(layers: Layers) -> Table:
    rows = [
        row(
            f"layer {number}",
            group,
            f"{found['nmi']:.3f}",
            Cell(f"{found['nmi_null']:.3f}", f"up to {found['nmi_null_high']:.3f}"),
            f"{found['adjusted']:.3f}",
            p_value(found["p"]),
        )
        for number, layer in layers
        for group, found in sorted(
            (layer.get("information") or {}).items(), key=lambda item: item[0] != "class"
        )
    ]
    return Table(
        name="information",
        caption="What the choice of neuron tells of class and attributes: normalised mutual "
        "information (0: nothing, 1: each tells the other), the same for routes dealt to clips at "
        "random (mean, 95 % point), the information adjusted for chance (0 on average for random "
        "routes), and p by permutation.",
        columns=("layer", "of", "NMI", "by chance", "adjusted", "p"),
        rows=rows,
        num_names=2,
        kind="dense",
    )


def _similarity(layers: Layers, *, tested: bool) -> Table:
    """`tested`: with p, which so few clips as leave the information out can't bear."""
    rows = [
        row(
            f"layer {number}",
            _cosine(found["within"]),
            _cosine(found["across"]),
            Cell(_cosine(found["within_null"]), f"up to {_cosine(found['within_null_high'])}"),
            *((p_value(found["p"]),) if tested else ()),
            " / ".join(_cosine(value, 2) for value in found["per_neuron"]),
        )
        for number, layer in layers
        if (found := layer.get("similarity"))
    ]
    return Table(
        name="similarity",
        caption="How alike the clips of one neuron are: mean cosine of their centred, pooled "
        "feature maps, within neurons and across them, for routes dealt at random (mean, 95 % "
        "point), and neuron by neuron.",
        columns=(
            "layer",
            "within",
            "across",
            "by chance",
            *(("p",) if tested else ()),
            "neuron by neuron",
        ),
        rows=rows,
        kind="dense",
    )


def _cosine(value: float | None, num_digits: int = 3) -> str:
    """A dash where there is none: one neuron has no clips across, one clip none within."""
    return "–" if value is None else f"{value:.{num_digits}f}".replace("-", MINUS)


def _gates(layers: Layers) -> Table:
    rows = []
    for number, layer in layers:
        gates = layer.get("gates")
        if gates and gates.get("class_need") is not None:
            found = gates["rank_correlation"]
            text = "–" if found is None else f"{found:+.2f}".replace("-", MINUS)
            rows.append(row(f"layer {number}", text, p_value(gates["p"])))
    return Table(
        name="gates",
        caption="Do gates open to time where the classes need it? Rank correlation, over the "
        "neurons of a layer, of the temporal share of a neuron’s channels with the mean need of "
        "time of the classes that it serves. Need: how much probability of the true class is lost "
        "when a clip’s time steps are put in random order or averaged.",
        columns=("layer", "rank correlation", "p"),
        rows=rows,
    )


def _view_changes(layers: Layers) -> Table:
    rows = [
        row(
            f"layer {number}",
            f"{found['clips']:,}",
            *(percent(found[key]) for key in ("changed", "pairs_apart", "pairs_apart_null")),
        )
        for number, layer in layers
        if (found := layer.get("view_changes"))
    ]
    return Table(
        name="view_changes",
        caption="How often the choice changes between views of one clip, percent: clips whose "
        "views do not all take the same neuron, pairs of views that differ, and the same for "
        "views routed without regard to their clip.",
        columns=("layer", "clips", "changed", "pairs apart", "by chance"),
        rows=rows,
    )


def _hard_pairs(inputs: ReportInputs, found: Mapping[str, Any], kind: str, num_pairs: int) -> Table:
    base = (inputs.routing or {}).get("baseline")
    name = inputs.metrics["heads"].get(base, {}).get("title", base)
    unbounded = "intervals" in inputs.left_out
    shown = found[kind][:num_pairs]
    what = "fewer" if kind == "separated" else "more"
    about = ", and the difference of the shares in percentage points."
    if not unbounded:
        about = (
            ", the difference of the shares in percentage points (paired interval), and exact "
            f"McNemar p, corrected by Holm for the {found['num_tested']} pairs that could differ. "
            "Nothing is adjusted for having picked the most striking pairs."
        )
        if all(pair["p_holm"] > SIGNIFICANT for pair in shown):
            about += f" None differs by more than chance can explain (p above {SIGNIFICANT})."
    tests = () if unbounded else ("p", "p (Holm)")
    return Table(
        name=f"pairs_{kind}",
        caption=f"Pairs of classes of which the head confuses {what} clips than {name}: clips of "
        f"the two that each confuses{about}",
        columns=("first", "second", "clips", "baseline", "head", "difference", *tests),
        rows=[
            row(
                *pair["names"],
                *(str(pair[key]) for key in ("clips", "baseline_confused", "head_confused")),
                difference({"difference": pair["difference"]} if unbounded else pair),
                *(() if unbounded else (p_value(pair["p"]), p_value(pair["p_holm"]))),
            )
            for pair in shown
        ],
        num_names=2,
        kind="dense",
    )


# ---- the paper's Tables 1 to 7 in its layout, with this run's figures beside its own ------------

NOT_RUN = "not run: python cli.py ablate"
HEADLINES = (
    ("paper: TPN, Something-Something V2", "top-1", "64.7", "67.2", "+2.5"),
    ("paper: Swin-B, Something-Something V2", "top-1", "69.6", "71.8", "+2.2"),
    ("paper: TPN, Diving48", "top-1", "86.2", "88.4", "+2.2"),
    ("paper: TPN, Diving48", "class-wise", "76.0", "78.2", "+2.2"),
    ("paper: Swin-B, Diving48", "top-1", "80.5", "83.0", "+2.5"),
    ("paper: Swin-B, Diving48", "class-wise", "69.7", "71.5", "+1.8"),
)
KEYS = {"top-1": "top1", "top-5": "top5", "class-wise": "class_wise"}


def beside_table(inputs: ReportInputs) -> Table:
    """The paper's headline and this run's: backbone alone, with DSTS, and the gain."""
    rows = [row(*texts) for texts in HEADLINES]
    ours = inputs.main
    base = inputs.baseline
    if base not in (None, inputs.main_head):
        alone = inputs.metrics["heads"][base]
        where = f"this run, {inputs.dataset or 'its own data'}"
        gains = {
            "top-1": difference(ours.get("versus_baseline")),
            "class-wise": Cell(signed_points(ours["class_wise"] - alone["class_wise"])),
        }
        for name, gain in gains.items():
            both = (with_interval(head, KEYS[name]) for head in (alone, ours))
            rows.append(row(where, name, *both, gain, emphasised=True))
    return Table(
        name="beside",
        caption=f"What the module adds to its backbone: the paper’s figures ({CITATION}) and this "
        "run’s, percent, intervals in brackets, gains in percentage points. The paper trains "
        "full-size backbones end to end, this run a head on a frozen one; levels don’t compare.",
        columns=("set-up", "measure", "backbone alone", "with DSTS", "gain"),
        rows=rows,
        num_names=2,
    )


def paper_tables(inputs: ReportInputs) -> dict[str, Table]:
    """All seven, by name ("table_1" ...)."""
    tables = (
        _method_table(paper, inputs)
        if paper.about == METHODS
        else _ablation_table(paper, inputs.ablation)
        for paper in PAPER_TABLES
    )
    return {table.name: table for table in tables}


def _paper_table(
    paper: PaperTable, rows: Sequence[Row], ours: str, columns: Sequence[str] = ()
) -> Table:
    return Table(
        name=f"table_{paper.number}",
        title=f"The paper’s Table {paper.number}.",
        caption=f"{paper.about.capitalize()}; {paper.dataset}, percent, as printed in {CITATION}. "
        + ours,
        columns=(*paper.columns, *columns),
        rows=rows,
    )


def _method_table(paper: PaperTable, inputs: ReportInputs) -> Table:
    """Tables 1 and 2: the paper's methods, each with its like of this run below it, a head or a
    variant of `ablate`; then this run's other heads."""
    printed = [texts[0] for texts in paper.rows]
    own: dict[str, list[Row]] = {}
    for name, head in inputs.heads:
        system = PAPER_SYSTEMS.get(name, "")
        cells = (with_interval(head, KEYS[column]) for column in paper.columns[1:])
        line = row(f"this run: {head['title']}", *cells, emphasised=name == inputs.main_head)
        own.setdefault(system if system in printed else "", []).append(line)
    rows = []
    for i, (texts, found) in enumerate(
        zip(paper.rows, _measured(paper, inputs.ablation), strict=True)
    ):
        rows += [row(*texts, emphasised=i in paper.best), *own.get(texts[0], ())]
        if found is not None:
            figures = (_mean(found.get(KEYS[column]) or {}) for column in paper.columns[1:])
            rows.append(row(f"this run: {found['title']}", *figures))
    rows += own.get("", [])
    ours = (
        f"Below their like, or below all, this run, on {inputs.dataset or 'its own data set'} "
        f"({inputs.metrics['split']} split), with intervals in brackets: other data and another "
        "backbone, so compare steps, not levels."
    )
    return _paper_table(paper, rows, ours)


def _measured(
    paper: PaperTable, ablation: Mapping[str, Any] | None
) -> list[Mapping[str, Any] | None]:
    """What `ablate` found for each row of the paper's table; None where it has not."""
    names = {label: name for name, label in PAPER_ROWS.get(paper.number, {}).items()}
    variants = {} if ablation is None else ablation.get("variants", {})
    return [variants.get(names.get(label, "")) for label, *_ in paper.rows]


def _ablation_table(paper: PaperTable, ablation: Mapping[str, Any] | None) -> Table:
    """Tables 2 to 7: the paper's variants, and the same variants measured here."""
    if ablation is None:
        rows = [row(*texts, emphasised=i in paper.best) for i, texts in enumerate(paper.rows)]
        return _paper_table(paper, rows, f"Ours: {NOT_RUN}.")
    measured = _measured(paper, ablation)
    figures = [column for column in paper.columns if column in KEYS]
    rows = [
        row(*printed, *_measured_cells(found, figures), emphasised=i in paper.best)
        for i, (printed, found) in enumerate(zip(paper.rows, measured, strict=True))
    ]
    seeds = len(ablation.get("seeds") or ())
    clips = f"on the {ablation['split']} split, intervals"
    if folds := ablation.get("folds"):
        clips = f"of all clips in {folds['num_folds']} folds of whole groups, intervals over folds"
    ours = (
        f"Ours: mean over {seeds} seed{'s' if seeds != 1 else ''} {clips} in brackets; the last "
        "column is the paired difference in top-1 to the full model, in percentage points."
    )
    if chosen_by := ablation.get("chosen_by"):
        ours += f" {tell_choice(chosen_by, ablation['split'])}"
    if len(PAPER_ROWS[paper.number]) < len(paper.rows):
        ours += " Rows without figures of ours are no variants of this ablation."
    elif any(found is None for found in measured):
        ours += f" An empty cell: {NOT_RUN}."
    columns = (*(f"ours: {column}" for column in figures), "ours: parameters", "against full")
    return _paper_table(paper, rows, ours, columns)


def _measured_cells(variant: Mapping[str, Any] | None, figures: Sequence[str]) -> list[str | Cell]:
    """Figures as means over the seeds, parameters, and the difference to the full model."""
    if variant is None:
        return [""] * (len(figures) + 2)
    found: list[str | Cell] = [_mean(variant.get(KEYS[name]) or {}) for name in figures]
    count = variant.get("num_parameters")
    versus = variant.get("versus_reference")
    if versus:
        ends = {f"difference_{end}": versus[end] for end in ("low", "high")}
        versus = ends | {"difference": versus["difference"]}
    return [*found, f"{count:,}" if count else "", difference(versus)]


def _mean(found: Mapping[str, Any]) -> Cell:
    named = {"mean": found.get("mean")}
    if found.get("low") is not None and found.get("high") is not None:
        named |= {"mean_low": found["low"], "mean_high": found["high"]}
    return with_interval(named, "mean")
