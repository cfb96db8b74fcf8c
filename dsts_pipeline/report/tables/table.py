"""A table, defined once: HTML in the page, Markdown and LaTeX files for papers.

Enters: texts. Leaves: texts in which everything that means something to the format is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
