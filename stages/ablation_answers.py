"""The answers of an ablation's finished runs, computed once for a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings.results import EvaluateSettings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn.ablation import RunPlan, Runs
from dsts_pipeline.metrics import HeadResult, Predictions
from stages.fitting_head import load_fitting_head
from stages.scores import Scoring, score_head


def answer(
    runs: Runs, plans: Sequence[RunPlan], feed: FeatureFeed, how: EvaluateSettings
) -> dict[Path, HeadResult]:
    """The answers of every finished run, by its folder; computed once for a split.

    Raises:
        CheckpointError: A finished run is damaged.
    """
    folders = list(dict.fromkeys(runs.folder(plan) for plan in plans if runs.is_finished(plan)))
    found = {}
    with track("Evaluating", len(folders), "heads") as progress:
        for folder in folders:
            try:
                found[folder] = _answer(folder, feed, how)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}; or delete {folder} and run `python cli.py ablate` again"
                ) from None
            progress.advance(1, folder.name)
    return found


def _answer(folder: Path, feed: FeatureFeed, how: EvaluateSettings) -> HeadResult:
    path = predictions_of(folder, how.split)
    if not path.exists():
        result = score_head(folder, feed, Scoring(how.batch_size))
        result.predictions.save(path)
        return result
    head, extra = load_fitting_head(folder, feed.store)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    num_neurons = getattr(head, "config", {}).get("num_neurons")
    predictions = Predictions.load(path)
    routed = predictions.neurons is not None
    return HeadResult(extra["title"], predictions, num_parameters, num_neurons if routed else None)


def predictions_of(folder: Path, split: str) -> Path:
    """Where a run's answers on a split are kept."""
    return folder / f"predictions-{split}.npz"
