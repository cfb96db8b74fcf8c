"""The README's short table of the claims: the same figures, kept between two marks.

Enters: `Figures` of the regimes that there are, the README's text. Leaves: the text with its table.
"""

from __future__ import annotations

from benchmarks.claims.figures import Figures
from benchmarks.claims.heads import goal_of_heads, top1_cell
from benchmarks.claims.regimes import ROOT
from benchmarks.claims.verdicts import markdown

README = ROOT / "README.md"
BEGIN = "<!-- python -m benchmarks.claims document: begin -->\n"
END = "<!-- python -m benchmarks.claims document: end -->\n"
COLUMNS = {
    "linear": "linear probe",
    "attentive": "V-JEPA's probe",
    "attentive_4": "of depth 4",
    "attentive_positions": "with positions",
    "block": "convolution block",
    "full": "DSTS, one neuron",
    "neurons_10": "ten neurons",
}


def summary_table(found: list[Figures]) -> str:
    """A row a regime: top-1 in percent, ± the standard deviation over seeds; a column a head that
    any of them has."""
    names = [name for name in COLUMNS if any(name in figures.variants for figures in found)]
    rows = [["frozen maps", *(COLUMNS[name] for name in names), "seeds"]]
    for figures in found:
        cells = [top1_cell(figures, name) for name in names]
        if "attentive_steady" in figures.variants:
            at = names.index("attentive_positions")
            cells[at] += f" (at 0.01: {top1_cell(figures, 'attentive_steady')})"
        rows.append([figures.regime.brief, *cells, str(figures.num_seeds("full"))])
    return markdown(rows)


def with_table(text: str, found: list[Figures], former_heads: str = "") -> str:
    """`text` with the table, its verdict and what is to be made again between its marks.

    Raises:
        ValueError: A mark is missing.
    """
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the README has no {BEGIN.strip()} with its end")
    parts = "", summary_table(found), goal_of_heads(found), former_heads
    told = "\n".join(f"{part}\n" for part in parts if part)
    return f"{before}{BEGIN}\n{told}\n{END}{after}"
