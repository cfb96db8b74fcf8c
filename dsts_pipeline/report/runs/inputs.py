"""Runs that can be compared: same classes, same clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics import Predictions
from dsts_pipeline.report.inputs import ReportInputs


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run and the name that the page calls it by."""

    name: str
    inputs: ReportInputs

    @property
    def answers(self) -> Predictions:
        """Those of its main head."""
        return self.inputs.predictions[self.inputs.main_head]

    @property
    def figures(self) -> Mapping[str, Any]:
        """The main head's part of metrics.json."""
        figures: Mapping[str, Any] = self.inputs.metrics["heads"][self.inputs.main_head]
        return figures


def check_runs(runs: Sequence[Run]) -> None:
    """Hold runs to what a comparison clip by clip needs.

    Raises:
        DataError: Fewer than two runs, one name twice, other classes or other clips.
    """
    if len(runs) < 2:
        raise DataError("one run compares with nothing; name two or more")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"a run is named twice: {', '.join(names)}; name each once")
    first = runs[0]
    for run in runs[1:]:
        if list(run.inputs.class_names) != list(first.inputs.class_names):
            raise DataError(
                f"{run.name} knows {len(run.inputs.class_names)} classes, {first.name} "
                f"{len(first.inputs.class_names)}, or other ones; compare runs of one data set"
            )
        odd = sorted(set(run.answers.clip_ids) ^ set(first.answers.clip_ids))
        if odd:
            raise DataError(
                f"{run.name} was evaluated on other clips than {first.name}: {len(odd)} are in "
                f"one of them only, such as {odd[0]!r}; evaluate both on the same split of the "
                "same data set"
            )
