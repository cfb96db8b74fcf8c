"""A search's trials as a table, as trials.json, and the best one's settings as a params file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsts_pipeline.base.files import write_atomic, write_json
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.variants import settings_as_yaml, with_values
from dsts_pipeline.learn.search.trials import TrialRecord, best_of

NUM_SHOWN = 10
BEST_PARAMS = "best_params.yaml"  # in the search's folder


def write_trials(folder: Path, settings: Settings, trials: list[TrialRecord], study: str) -> None:
    """Write trials.json and, once a trial is complete, best_params.yaml into `folder`."""
    made_by = settings.model_dump(mode="json", include={"search", "head", "udl", "train", "seed"})
    records: dict[str, Any] = {"study": study, "trials": [trial.to_json() for trial in trials]}
    write_json(folder / "trials.json", records | {"provenance": collect_provenance(made_by)})
    if (best := best_of(trials)) is None:
        return
    text = settings_as_yaml(with_values(settings, best.values))
    told = f"# Best of {len(trials)} trials of study {study}, by clips held out of train.\n"
    told += f"# {best.told}\n" + "".join(f"# {key}: {v}\n" for key, v in best.values.items())
    write_atomic(folder / BEST_PARAMS, (told + text).encode())


def print_trials(folder: Path, trials: list[TrialRecord], present: dict[str, Any]) -> None:
    """The best trials first, in full; then how many there are, and what to run next.

    Args:
        folder: Where `write_trials` put the best one's settings.
        present: The values that the settings have now; a trial that had them is named.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(console.width, 100))
    table = Table(title="Trials by held-out loss", title_justify="left")
    for column in ("trial", "loss", "accuracy", "epochs"):
        table.add_column(column, justify="right")
    keys = list(trials[0].values) if trials else []
    for key in keys:
        table.add_column(key.partition(".")[2].replace("_learning_rate_factor", "_factor"))
    for trial in sorted(complete, key=lambda trial: trial.loss or 0.0)[:NUM_SHOWN]:
        accuracy = "" if trial.accuracy is None else f"{100 * trial.accuracy:.1f} %"
        values = [_shown(trial.values[key]) for key in keys]
        table.add_row(
            str(trial.number), f"{trial.loss:.4f}", accuracy, str(trial.num_epochs), *values
        )
    console.print(table)
    counts = {state: sum(t.state == state for t in trials) for state in ("pruned", "refused")}
    same = [
        f"; trial {t.number} has the settings as they are" for t in trials if t.values == present
    ]
    console.print(
        f"{len(complete)} complete, {counts['pruned']} pruned, {counts['refused']} refused"
        + "".join(same[:1])
    )
    if complete:
        console.print(f"next: python cli.py train-head --params {folder / BEST_PARAMS}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
