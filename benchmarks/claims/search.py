"""The search that every variant had alike: three learning rates, chosen on held-out clips alone.

Enters: a regime's result file and those of the same trainings at other rates. Leaves: for each
variant the rate of best held-out accuracy; the `Figures` of variants at the rates that they chose;
which verdicts are others at the common rate. Test clips have no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims.figures import REFERENCE, Difference, Figures
from benchmarks.claims.regimes import BY_NAME, OTHER_RATES, REGIMES, SEARCH, Regime
from benchmarks.claims.results import RESULTS, result_file
from benchmarks.claims.verdicts import COMPARISONS, Comparison, markdown, verdict
from dsts_pipeline.base.errors import DataError

SEED = 0
"""The choice is by this one seed, which every variant has at every rate."""


class Search:
    """All variants of a regime at all rates.

    Args:
        figures: Of the regime, at the rate of its experiment.
        folder: Holds the result files of the other rates, too.

    Raises:
        DataError: They are of other maps.
    """

    def __init__(self, figures: Figures, folder: Path = RESULTS) -> None:
        self.regime, self.before = figures.regime, figures
        everything = [figures]
        for rate in OTHER_RATES:
            other = Figures.read(self.regime.at(rate), folder)
            if other.content["store"] != figures.content["store"]:
                raise DataError(
                    f"{result_file(other.regime, folder)} is of another store than "
                    f"{self.regime.name}.json; run its regime again"
                )
            everything.append(other)
        self.of_rate = {_rate_of(one): one for one in everything}
        variants = {name: self._chosen(name) for name in figures.variants}
        self.figures = Figures(self.regime, figures.content | {"variants": variants})

    @staticmethod
    def exists(regime: Regime, folder: Path = RESULTS) -> bool:
        """Whether all its rates were trained."""
        names = (regime, *(regime.at(rate) for rate in OTHER_RATES))
        return all(result_file(one, folder).exists() for one in names)

    def heldout(self, name: str) -> dict[float, float]:
        """Held-out accuracy of a trained variant at each rate, in percent, the lowest first.

        0 where no epoch was better than the untrained head.
        """
        runs = {rate: one.runs(name)[SEED] for rate, one in sorted(self.of_rate.items())}
        return {rate: 100 * (run["heldout_accuracy"] or 0.0) for rate, run in runs.items()}

    def is_trained(self, name: str) -> bool:
        """Whether a variant has a rate at all."""
        return self.before.runs(name)[SEED]["epochs"] > 0

    def rate(self, name: str) -> float:
        """The rate of best held-out accuracy; of equals the lowest."""
        found = self.heldout(name)
        return max(found, key=lambda rate: found[rate])

    def others_than(self, rate: float) -> list[str]:
        """Variants that did not choose `rate`; never the reference, which all are compared with."""
        names = [name for name in self.before.variants if name != REFERENCE]
        return [name for name in names if not self.is_trained(name) or self.rate(name) != rate]

    def changed(self) -> list[tuple[Comparison, Difference, Difference]]:
        """Comparisons with another verdict at the common rate: the difference there, and here."""
        found = []
        for comparison in COMPARISONS:
            names = comparison.better, comparison.worse
            if not set(names) <= set(self.before.variants):
                continue
            before, now = self.before.versus(*names), self.figures.versus(*names)
            if verdict(before) != verdict(now):
                found.append((comparison, before, now))
        return found

    def _chosen(self, name: str) -> dict:
        if not self.is_trained(name):
            return self.before.variants[name]
        rate = self.rate(name)
        return self.of_rate[rate].variants[name] | {"rate": rate}


def unchosen(step: Regime, folder: Path = RESULTS) -> list[str]:
    """Variants that chose another rate than that of `step`, one of the search's regimes.

    Raises:
        DataError: `step` is not of the search, or a rate of its regime was not trained.
    """
    for regime in REGIMES:
        for rate in OTHER_RATES:
            if step == regime.at(rate):
                return Search(Figures.read(regime, folder), folder).others_than(rate)
    raise DataError(f"{step.name} is no step of the search; leave --chosen out")


def steps(names: Sequence[str] | None, *, chosen: bool) -> list[tuple[Regime, bool]]:
    """What `run` trains in turn: a regime, and whether only the variants that chose its rate.

    Without names it is everything: all regimes, and then, as the search is complete, each rate's
    other seeds (with `chosen` those alone).
    """
    if names is not None:
        return [(BY_NAME[name], chosen) for name in names]
    first = [] if chosen else [(regime, False) for regime in BY_NAME.values()]
    return [*first, *((regime, True) for regime in SEARCH)]


def common_rate_table(searches: list[Search]) -> str:
    """A row a variant, a column a regime, all at one rate: top-1, minus the full model's."""
    titles = {name: v["title"] for one in searches for name, v in one.before.variants.items()}
    rows = [["variant", *(one.regime.title for one in searches)]]
    for name, title in titles.items():
        rows.append([title, *(_cell(one.before, name) for one in searches)])
    return markdown(rows)


def _cell(figures: Figures, name: str) -> str:
    if name not in figures.variants:
        return ""
    cell = f"{figures.top1(name):.1f}"
    if name == REFERENCE:
        return cell
    one = figures.versus(name)
    seeds = "" if one.low is None or one.high is None else f"{one.low:+.1f} to {one.high:+.1f}; "
    return f"{cell}, {one.points:+.1f} ({seeds}{one.clips_low:+.1f} to {one.clips_high:+.1f})"


def _rate_of(figures: Figures) -> float:
    return figures.content["settings"]["train"]["learning_rate"]
