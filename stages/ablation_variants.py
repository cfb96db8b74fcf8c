"""What an ablation says of each variant, from its runs and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsts_pipeline.base.settings.grid import Variant
from dsts_pipeline.learn.ablation import RunPlan, Runs
from dsts_pipeline.metrics import HeadResult
from dsts_pipeline.metrics.ablation import AblationRun, AblationVariant
from stages.ablation_answers import predictions_of


def describe_variants(
    variants: Sequence[Variant],
    plans: Mapping[str, Sequence[RunPlan]],
    runs: Runs,
    answers: Mapping[Path, HeadResult],
    failures: Mapping[Path, str],
    split: str,
) -> dict[str, AblationVariant]:
    """What `assemble_ablation` takes, by name; several runs may share a folder."""
    found = {}
    for variant in variants:
        done = [
            AblationRun(
                plan.seed,
                answers[folder],
                runs.history(plan),
                predictions_of(folder, split).relative_to(runs.root.parent).as_posix(),
            )
            for plan in plans[variant.name]
            if (folder := runs.folder(plan)) in answers
        ]
        folders = [runs.folder(plan) for plan in plans[variant.name]]
        own = [failures[folder] for folder in folders if folder in failures]
        found[variant.name] = AblationVariant(
            variant.title, variant.table, variant.changes, done, own
        )
    return found
