"""The search that every variant had alike: three learning rates, chosen on held-out clips alone.

Enters: a regime's result file and those of the same trainings at other rates, of one seed.
Leaves: for each variant the rate of best held-out accuracy; differences of variants, each at its
own rate; which verdicts would turn by that. Test clips have no part in the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.claims.figures import BOOTSTRAP, REFERENCE, Figures
from benchmarks.claims.regimes import OTHER_RATES, Regime
from benchmarks.claims.results import RESULTS, result_file
from benchmarks.claims.verdicts import COMPARISONS, Comparison, markdown, verdict
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.intervals import Interval, paired_difference

SEED = 0


@dataclass(frozen=True)
class Step:
    """A variant trained at one rate: accuracies in percent, and which test clips were right."""

    rate: float
    heldout: float
    top1: float
    hits: np.ndarray


class Search:
    """All variants of a regime at all rates.

    Args:
        figures: Of the regime, at the rate of its experiment.
        folder: Holds the result files of the other rates, too.

    Raises:
        DataError: They are of other maps.
    """

    def __init__(self, figures: Figures, folder: Path = RESULTS) -> None:
        regime = figures.regime
        others = [Figures(regime.at(rate), folder) for rate in OTHER_RATES[regime.name]]
        for one in others:
            if one.content["store"] != figures.content["store"]:
                raise DataError(
                    f"{result_file(one.regime, folder)} is of another store than "
                    f"{regime.name}.json; run its regime again"
                )
        self.figures = figures
        self._of = {one.content["settings"]["train"]["learning_rate"]: one for one in others}
        self._of[figures.content["settings"]["train"]["learning_rate"]] = figures

    @staticmethod
    def exists(regime: Regime, folder: Path = RESULTS) -> bool:
        """Whether all its rates were trained."""
        names = (regime, *(regime.at(rate) for rate in OTHER_RATES[regime.name]))
        return all(result_file(one, folder).exists() for one in names)

    def steps(self, name: str) -> list[Step]:
        """A trained variant at each rate, the lowest first."""
        return [
            Step(
                rate,
                100 * figures.runs(name)[SEED]["heldout_accuracy"],
                100 * float(figures.hits[name][SEED].mean()),
                figures.hits[name][SEED],
            )
            for rate, figures in sorted(self._of.items())
        ]

    def chosen(self, name: str) -> Step:
        """The step of best held-out accuracy; of equals the lowest rate."""
        return max(self.steps(name), key=lambda step: (step.heldout, -step.rate))

    def versus(self, name: str, other: str = REFERENCE) -> Interval:
        """`name` minus `other` in points, each at its own rate, with the interval over clips."""
        own, base = (self._hits(one) for one in (name, other))
        found = paired_difference(own, base, BOOTSTRAP)
        return Interval(100 * found.value, 100 * found.low, 100 * found.high, found.confidence)

    def turned(self) -> list[tuple[Comparison, Interval]]:
        """Comparisons that hold, or whose opposite does, and point beyond zero the other way."""
        found = []
        for comparison in COMPARISONS:
            names = comparison.better, comparison.worse
            if not set(names) <= set(self.figures.variants):
                continue
            before, now = verdict(self.figures.versus(*names)), self.versus(*names)
            if (before == "holds" and now.high < 0) or (before == "opposite" and now.low > 0):
                found.append((comparison, now))
        return found

    def _hits(self, name: str) -> np.ndarray:
        if _is_untrained(self.figures, name):
            return self.figures.hits[name][SEED]
        return self.chosen(name).hits


def search_table(searches: list[Search]) -> str:
    """A row a variant, a column a regime: the rate chosen, top-1, minus the full model's."""
    titles = {name: v["title"] for one in searches for name, v in one.figures.variants.items()}
    rows = [["variant", *(one.figures.regime.title for one in searches)]]
    for name, title in titles.items():
        rows.append([title, *(_cell(one, name) for one in searches)])
    return markdown(rows)


def _cell(search: Search, name: str) -> str:
    if name not in search.figures.variants or _is_untrained(search.figures, name):
        return ""
    step = search.chosen(name)
    cell = f"{1000 * step.rate:g}e-3: {step.top1:.1f}"
    if name == REFERENCE:
        return cell
    one = search.versus(name)
    return f"{cell}, {one.value:+.1f} ({one.low:+.1f} to {one.high:+.1f})"


def _is_untrained(figures: Figures, name: str) -> bool:
    return figures.runs(name)[SEED]["heldout_accuracy"] is None
