"""A study of trials on disk, by Optuna: killed at any moment, it goes on where it was.

Enters: dimensions, a folder, and a function that trains with some values and calls back after
every epoch. Leaves: records of trials. A trial's values depend on the seed and the trials finished
before alone, so a search that was killed and went on finds what an unbroken one finds; the trial
that was at work is repeated with its values (its training goes on from its own checkpoint).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.learn.search.space import Dimension
from dsts_pipeline.learn.search.trials import TrialRecord, TrialRefused

OnEpoch = Callable[[dict[str, Any]], None]
TrainTrial = Callable[[int, dict[str, Any], OnEpoch], None]
"""Trains with some values; calls back with every epoch's entry, which may end the trial."""


@dataclass(frozen=True)
class Pruning:
    """When a trial is ended early.

    Args:
        kind: "median": worse at an epoch than the median of earlier trials there;
            "successive_halving": not among the better quarter at epoch 1, 4, 16; or "none".
        startup_trials: Whose values are random, and which "median" lets finish.
        warmup_epochs: Of a trial, before "median" may end it.
    """

    kind: Literal["median", "successive_halving", "none"] = "median"
    startup_trials: int = 5
    warmup_epochs: int = 2


def import_optuna() -> Any:
    """The package, quiet.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SettingsError(
            "searching needs Optuna, which is not installed; run "
            '`pip install -c constraints.txt -e ".[search]"`'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def locked_study(folder: Path) -> Iterator[Path]:
    """Keep other searches out of `folder`: whatever trial was at work there is nobody's now.

    Raises:
        SettingsError: One is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SettingsError(
            f"{folder}: another search is at work here; wait for it or stop it"
        ) from None
    else:
        yield folder
    finally:
        os.close(descriptor)


class Study:
    """Trials of one search, in `folder`/study.db; hold `locked_study` meanwhile.

    Args:
        name: Of all that decides the search: studies of other names in the file are left alone.
        dimensions: What is varied.
        present: The values that the settings have now: the first trial, where in the space.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dimensions: Sequence[Dimension],
        *,
        present: Mapping[str, Any],
        seed: int,
        pruning: Pruning,
    ) -> None:
        self._optuna = import_optuna()
        self.dimensions, self.seed, self.pruning = list(dimensions), seed, pruning
        self._study = self._optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / 'study.db'}",
            study_name=name,
            direction="minimize",
            load_if_exists=True,
            pruner=self._pruner(),
        )
        self._repeat_broken_trials()
        if not self._study.trials and all(d.holds(present[d.key]) for d in self.dimensions):
            self._study.enqueue_trial({d.key: present[d.key] for d in self.dimensions})

    @property
    def finished(self) -> list[TrialRecord]:
        """Records of the trials that came to an end, in order."""
        states = self._optuna.trial.TrialState
        found = self._study.get_trials(states=(states.COMPLETE, states.PRUNED))
        return [self._record(trial) for trial in found]

    def run_trial(self, train: TrainTrial) -> TrialRecord:
        """The next trial, from its values to its record.

        An exception of `train` other than `TrialRefused` leaves the trial to be repeated.
        """
        self._study.sampler = self._sampler(len(self.finished))
        trial = self._study.ask()
        values = {d.key: d.suggest(trial) for d in self.dimensions}
        began, entries = time.monotonic(), list[dict[str, Any]]()

        def on_epoch(entry: dict[str, Any]) -> None:
            entries.append(entry)
            trial.report(entry["heldout_loss"], entry["epoch"])
            if trial.should_prune():
                raise self._optuna.TrialPruned

        states, state = self._optuna.trial.TrialState, "complete"
        try:
            train(trial.number, values, on_epoch)
        except self._optuna.TrialPruned:
            state = "pruned"
        except TrialRefused as error:
            state = "refused"
            trial.set_user_attr("reason", str(error))
        best = min(entries, key=lambda entry: entry["heldout_loss"], default=None)
        if best is not None and state != "refused":
            trial.set_user_attr("accuracy", best["heldout_accuracy"])
            trial.set_user_attr("loss", best["heldout_loss"])
        trial.set_user_attr("state", state)
        trial.set_user_attr("num_epochs", len(entries))
        trial.set_user_attr("seconds", time.monotonic() - began)
        if state == "complete" and best is not None:
            self._study.tell(trial, best["heldout_loss"])
        else:
            self._study.tell(trial, state=states.PRUNED)
        return self._record(self._study.trials[trial.number])

    def _record(self, trial: Any) -> TrialRecord:
        said = trial.user_attrs
        return TrialRecord(
            trial.number,
            {d.key: trial.params[d.key] for d in self.dimensions},
            said.get("loss"),
            said.get("accuracy"),
            said["state"],
            said["num_epochs"],
            said["seconds"],
            said.get("reason"),
        )

    def _repeat_broken_trials(self) -> None:
        """Trials that a killed search left at work come first again, with their values."""
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(states=(states.RUNNING,)):
            if set(trial.params) == {d.key for d in self.dimensions}:
                self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=states.FAIL)

    def _sampler(self, num_finished: int) -> Any:
        seed = derive_seed(self.seed, "search", num_finished) % 2**32
        return self._optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self.pruning.startup_trials
        )

    def _pruner(self) -> Any:
        pruners, how = self._optuna.pruners, self.pruning
        if how.kind == "none":
            return pruners.NopPruner()
        if how.kind == "successive_halving":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
        return pruners.MedianPruner(how.startup_trials, how.warmup_epochs)
