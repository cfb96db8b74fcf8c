"""The figures of a regime, computed from its result file: means, differences, intervals, tests.

Enters: docs/claims/<regime>.json. Leaves: a `Figures` that the page asks for numbers. Accuracies
and differences are in percent and points. A difference is variant minus reference, paired by seed
and clip by clip; where clips have groups over whole groups, of a cross-validation over folds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.regimes import Regime
from benchmarks.claims.results import RESULTS, result_file, right_clips
from dsts_pipeline.base.files import read_json
from dsts_pipeline.metrics.intervals import (
    Bootstrap,
    holm,
    over_groups,
    over_seeds,
    paired_over_folds,
    paired_over_seeds,
)

REFERENCE = "full"
BOOTSTRAP = Bootstrap()


@dataclass(frozen=True)
class Difference:
    """Variant minus reference in points, its 95 % intervals over seeds and over clips (whole groups
    of them where there are groups); of a cross-validation over folds in the place of seeds.

    `p` is of the paired t test over seeds or folds, `p_holm` adjusted for all variants of the
    regime; None where there are too few.
    """

    points: float
    low: float | None
    high: float | None
    clips_low: float
    clips_high: float
    p: float | None
    p_holm: float | None = None

    @property
    def is_above_zero(self) -> bool:
        """Whether both intervals lie above zero."""
        return self.low is not None and min(self.low, self.clips_low) > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether both intervals lie below zero."""
        return self.high is not None and max(self.high, self.clips_high) < 0


class Figures:
    """What a result file says.

    Args:
        regime: Whose.
        content: Of its file, see `read`.
    """

    def __init__(self, regime: Regime, content: dict[str, Any]) -> None:
        self.regime, self.content = regime, content
        self._known_draws: dict[tuple[int, ...], dict[str, np.ndarray]] = {}

    @classmethod
    def read(cls, regime: Regime, folder: Path = RESULTS) -> Figures:
        """Those of the regime's file."""
        return cls(regime, read_json(result_file(regime, folder)))

    @property
    def variants(self) -> dict[str, Any]:
        """The file's variants, in the order of the experiment's list."""
        found = self.content["variants"]
        return {name: found[name] for name in sorted(found, key=lambda n: found[n]["position"])}

    def runs(self, name: str) -> dict[int, dict[str, Any]]:
        """A variant's runs by seed."""
        return {run["seed"]: run for run in self.content["variants"][name]["runs"]}

    @cached_property
    def hits(self) -> dict[str, dict[int, np.ndarray]]:
        """Which clips each variant got right, by seed."""
        count = self.content["num_clips"]
        return {
            name: {seed: right_clips(run, count) for seed, run in self.runs(name).items()}
            for name in self.content["variants"]
        }

    def top1(self, name: str) -> float:
        """Mean over seeds, in percent."""
        return 100 * float(np.mean([hits.mean() for hits in self.hits[name].values()]))

    def spread(self, name: str) -> float | None:
        """Standard deviation over seeds, in points."""
        found = over_seeds([float(hits.mean()) for hits in self.hits[name].values()])["std"]
        return None if found is None else 100 * found

    def num_seeds(self, name: str) -> int:
        """How often it was trained."""
        return len(self.hits[name])

    def routes(self, name: str) -> list[dict[str, Any]]:
        """What each seed's neurons serve (`routes`), where the file says so."""
        return [run["routes"] for run in self.runs(name).values() if run.get("routes")]

    def order_loss(self, name: str) -> float:
        """Points that a routed variant loses where the order in time is taken away."""
        kept = [one["accuracy_without_time"] for one in self.routes(name)]
        return self.top1(name) - 100 * float(np.mean(kept))

    def dead(self, name: str, *, in_training: bool = False) -> float:
        """Neurons of all layers to which no test clip goes, mean over seeds.

        Args:
            in_training: As the trainings counted them on held-out clips.
        """
        if in_training:
            runs = self.runs(name).values()
            return float(np.mean([sum(layer["dead"] for layer in run["layers"]) for run in runs]))
        found = [sum(layer["dead"] for layer in one["layers"]) for one in self.routes(name)]
        return float(np.mean(found))

    def versus(self, name: str, other: str = REFERENCE) -> Difference:
        """`name` minus `other`, on the seeds that both have; p is not adjusted."""
        own, base = self.hits[name], self.hits[other]
        seeds = tuple(seed for seed in own if seed in base)
        values, others = ([float(side[seed].mean()) for seed in seeds] for side in (own, base))
        found = paired_over_seeds(values, others)
        if self.has_groups:
            gained = np.mean([own[seed].astype(np.float64) - base[seed] for seed in seeds], axis=0)
            groups = np.array(self.content["clips"]["groups"])
            by_group = over_groups(gained, groups, BOOTSTRAP)
            clips_low, clips_high = by_group["low"], by_group["high"]
            if self.is_cross_validation:
                even = np.full(len(gained), 1.0 / len(gained))
                found = paired_over_folds(gained, even, np.array(self.content["clips"]["folds"]))
        else:
            draws, count = self._draws(seeds), self.content["num_clips"] * len(seeds)
            resampled = (draws[name] - draws[other]) / count
            by_clip = BOOTSTRAP.interval_of_draws(found["difference"], resampled)
            clips_low, clips_high = by_clip.low, by_clip.high
        low, high = (None if found[side] is None else 100 * found[side] for side in ("low", "high"))
        points = 100 * found["difference"]
        return Difference(points, low, high, 100 * clips_low, 100 * clips_high, found["p_value"])

    @property
    def has_groups(self) -> bool:
        """Whether its test clips come in groups."""
        return "clips" in self.content

    @property
    def is_cross_validation(self) -> bool:
        """Whether every clip was held out by one fold."""
        return self.has_groups and "folds" in self.content["clips"]

    def _draws(self, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Right answers of all `seeds` on each draw of clips, of every variant that has them."""
        if seeds not in self._known_draws:
            having = {name: runs for name, runs in self.hits.items() if runs.keys() >= set(seeds)}
            columns = [np.sum([runs[seed] for seed in seeds], axis=0) for runs in having.values()]
            draws = BOOTSTRAP.draws_of_sums(np.stack(columns, axis=1))
            self._known_draws[seeds] = dict(zip(having, draws.T, strict=True))
        return self._known_draws[seeds]

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Every variant minus the reference, with p adjusted over all of them."""
        found = {name: self.versus(name) for name in self.variants if name != REFERENCE}
        tested = {name: one.p for name, one in found.items() if one.p is not None}
        if tested:
            for name, p in zip(tested, holm(np.array(list(tested.values()))), strict=True):
                found[name] = replace(found[name], p_holm=float(p))
        return found
