"""The paper's claims, one by one: which difference would show each, and what was measured.

Enters: `Figures` of the regimes that there are. Leaves: tables for the page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.claims.figures import REFERENCE, Difference, Figures
from dsts_pipeline.metrics.ablation import paper_figures
from dsts_pipeline.metrics.intervals import over_seeds


@dataclass(frozen=True)
class Comparison:
    """A difference that a claim says is above zero.

    Args:
        claim: In the paper's words or nearly so; empty for one more comparison of the last claim.
        what: The difference, for people.
        better, worse: Names of variants.
        paper: Number of the paper's table that has both, its full model being `better`.
    """

    claim: str
    what: str
    better: str
    worse: str
    paper: tuple[int, str] | None = None


COMPARISONS = (
    Comparison(
        "DSTS improves the baseline", "with UDL - baseline", "with_udl", "baseline", (4, "baseline")
    ),
    Comparison("", "full - baseline", REFERENCE, "baseline"),
    Comparison("", "full - its classifier alone, trained on", REFERENCE, "continued_classifier"),
    Comparison("It does so by specializing", "full - convolution block", REFERENCE, "conv_block"),
    Comparison("", "full - attentive probe", REFERENCE, "attentive_probe"),
    Comparison("", "full - linear probe", REFERENCE, "linear_probe"),
    Comparison(
        "The synapse helps",
        "full - all averaged",
        REFERENCE,
        "without_synapse",
        (4, "without_synapse"),
    ),
    Comparison("", "full - N = 1", REFERENCE, "neurons_1"),
    Comparison(
        "Gates help", "full - fixed halves", REFERENCE, "without_gates", (3, "without_gates")
    ),
    Comparison("", "full - 3x3x3 convolutions", REFERENCE, "without_sts", (3, "without_sts")),
    Comparison("UDL helps", "with UDL - ordinary steps", "with_udl", REFERENCE, (5, "without_udl")),
    Comparison("N = 10 is best", "full - N = 5", REFERENCE, "neurons_5", (6, "neurons_5")),
    Comparison("", "full - N = 15", REFERENCE, "neurons_15", (6, "neurons_15")),
    Comparison("L = 3 is best", "full - L = 1", REFERENCE, "layers_1", (7, "layers_1")),
    Comparison("", "full - L = 5", REFERENCE, "layers_5", (7, "layers_5")),
    Comparison("The skip connection helps", "full - without it", REFERENCE, "without_skip"),
)


def verdict(difference: Difference) -> str:
    """What the two intervals say of the claim that a difference is above zero."""
    if difference.is_above_zero:
        return "holds"
    if difference.is_below_zero:
        return "opposite"
    if difference.low is None:
        return "one seed"
    return "not seen"


def verdicts_table(found: list[Figures]) -> str:
    """A row a claim, by the first of its comparisons: verdict and points, no intervals."""
    rows = [["claim", "paper", *(one.regime.short for one in found)]]
    for comparison in COMPARISONS:
        if comparison.claim:
            cells = [_short_cell(figures, comparison) for figures in found]
            rows.append([comparison.claim, _paper(comparison), *cells])
    return markdown(rows)


def claims_table(found: list[Figures]) -> str:
    """A row a comparison, a column a regime: points, interval over seeds, verdict."""
    columns = ["claim", "difference, points", "paper", *(one.regime.title for one in found)]
    rows = []
    for comparison in COMPARISONS:
        cells = [comparison.claim, comparison.what, _paper(comparison)]
        cells += [_cell(figures, comparison) for figures in found]
        rows.append(cells)
    return markdown([columns, *rows])


def routes_table(found: list[Figures]) -> str:
    """What the full model's neurons serve, in each regime: means over seeds."""
    columns = ["regime", "neuron and class, adjusted information by layer", "dead neurons"]
    columns += ["temporal share of gates", "temporal gates and need: rank correlation"]
    rows = []
    for figures in found:
        seen = figures.routes(REFERENCE)
        if not seen:
            continue
        adjusted = np.mean([[layer["adjusted"] for layer in one["layers"]] for one in seen], axis=0)
        shares = [layer["temporal_share"] for one in seen for layer in one["layers"]]
        rows.append(
            [
                figures.regime.title,
                ", ".join(f"{value:.2f}" for value in adjusted),
                f"{figures.dead(REFERENCE):.1f}",
                "" if None in shares else f"{np.mean(shares):.2f}",
                _correlation(seen),
            ]
        )
    return markdown([columns, *rows])


def order_table(found: list[Figures]) -> str:
    """Points that each routed variant loses without the order in time, a column a regime."""
    names = {name: one.variants[name]["title"] for one in found for name in one.variants}
    rows = []
    for name, title in names.items():
        having = [one if name in one.variants and one.routes(name) else None for one in found]
        if any(having):
            rows.append(
                [title, *("" if one is None else f"{one.order_loss(name):.1f}" for one in having)]
            )
    return markdown([["variant", *(one.regime.title for one in found)], *rows])


def _correlation(seen: list[dict]) -> str:
    """Mean over layers and seeds with the t interval over seeds."""
    by_seed = [
        np.mean([layer["need"] for layer in one["layers"] if layer["need"] is not None])
        for one in seen
        if any(layer["need"] is not None for layer in one["layers"])
    ]
    if not by_seed:
        return ""
    found = over_seeds(by_seed)
    if found["low"] is None:
        return f"{found['mean']:+.2f}"
    return f"{found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def _versus(figures: Figures, comparison: Comparison) -> Difference | None:
    """The difference; None where the regime lacks one of the two variants."""
    if not {comparison.better, comparison.worse} <= set(figures.variants):
        return None
    return figures.versus(comparison.better, comparison.worse)


def _short_cell(figures: Figures, comparison: Comparison) -> str:
    one = _versus(figures, comparison)
    return "" if one is None else f"{verdict(one)} {one.points:+.1f}"


def _cell(figures: Figures, comparison: Comparison) -> str:
    one = _versus(figures, comparison)
    if one is None:
        return ""
    low, high = (one.clips_low, one.clips_high) if one.low is None else (one.low, one.high)
    return f"{one.points:+.1f} ({low:+.1f} to {high:+.1f}) {verdict(one)}"


def _paper(comparison: Comparison) -> str:
    if comparison.paper is None:
        return ""
    table, name = comparison.paper
    own, full = paper_figures(table, name), paper_figures(table, REFERENCE)
    return f"{full['top1'] - own['top1']:+.1f}" if own and full else ""


def markdown(lines: list[list[str]]) -> str:
    """A table of Markdown, its head first."""
    head, *rows = lines
    everything = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in everything)
