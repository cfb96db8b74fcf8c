"""A search of settings: what may vary, the study of trials (by Optuna, on disk), what came out.

A study that was killed at any moment goes on where it was.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from ruamel.yaml.error import YAMLError

from dsts_pipeline.base.errors import SettingsError, import_extra
from dsts_pipeline.base.files import sha256_json, write_atomic, write_json
from dsts_pipeline.base.params import (
    COMMON,
    JUDGING,
    read_value,
    require_setting,
    settings_as_yaml,
    with_values,
)
from dsts_pipeline.base.provenance import collect_provenance, derive_seed
from dsts_pipeline.base.settings import OF_THE_RUN, SearchSettings, Settings
from dsts_pipeline.learn.resume import digest_sources
from dsts_pipeline.learn.training import order_of

# ---- one trial -----------------------------------------------------------------------------------


class TrialRefused(Exception):
    """The values of a trial can't be trained, or diverged; the search goes on."""


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Args:
        number: From 0, in the order of their start.
        values: Of the settings searched, by key.
        accuracy: Highest held-out accuracy of its epochs; None where it was refused.
        loss: Held-out loss of that epoch, of equally accurate ones the lowest.
        state: "complete", "pruned" or "refused".
        num_epochs: How many it ran.
        reason: Why it was refused.
    """

    number: int
    values: dict[str, Any]
    accuracy: float | None
    loss: float | None
    state: str
    num_epochs: int
    seconds: float
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def told(self) -> str:
        """A line about it."""
        if self.accuracy is None:
            return f"trial {self.number}: refused ({self.reason})"
        epochs = f"{self.num_epochs} epoch{'' if self.num_epochs == 1 else 's'}"
        return (
            f"trial {self.number}: held-out accuracy {100 * self.accuracy:.1f} %, "
            f"loss {self.loss:.4f}, {epochs}, {self.seconds:.0f} s, {self.state}"
        )


def ranked(trials: list[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, the most accurate first, of equals that of the lower loss."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return sorted(complete, key=lambda trial: (-(trial.accuracy or 0.0), trial.loss or 0.0))


def best_of(trials: list[TrialRecord]) -> TrialRecord | None:
    """The first of `ranked`; None where no trial is complete."""
    return next(iter(ranked(trials)), None)


# ---- the space -----------------------------------------------------------------------------------

FORMS = "key=low:high, key=low:high:log or key=a,b,c"
SECTIONS = "head", "udl", "train"


@dataclass(frozen=True)
class Dimension:
    """One setting and the values that it may take.

    Args:
        key: Dotted.
        choices: The values, where they are listed.
        low, high: Both ends of the range else; it is of whole numbers if both are.
        log: Whether the logarithm is drawn evenly.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that a check of all others needs: all choices, or both ends."""
        return self.choices or (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether `value` is one that may be taken."""
        if self.choices:
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def parse_dimension(text: str) -> Dimension:
    """Read one dimension.

    Raises:
        SettingsError: It is none of the three forms, or a range without width.
    """
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals or not key or not rest.strip():
        raise SettingsError(f"{text}: expected {FORMS}")
    if ":" in rest:
        return _parse_range(text, key, rest.split(":"))
    choices = tuple(_read(text, part) for part in rest.split(","))
    if len(choices) < 2 or len({repr(choice) for choice in choices}) < len(choices):
        raise SettingsError(f"{text}: expected at least two different values, or {FORMS}")
    return Dimension(key, choices)


def _parse_range(text: str, key: str, parts: list[str]) -> Dimension:
    log = len(parts) == 3 and parts[2].strip() == "log"
    if len(parts) != (3 if log else 2):
        raise SettingsError(f"{text}: expected {FORMS}")
    low, high = (_read(text, part) for part in parts[:2])
    for value in (low, high):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingsError(f"{text}: found {value!r}, expected a number at both ends")
    if not low < high:
        raise SettingsError(f"{text}: {low:g} is not below {high:g}; put the smaller end first")
    if log and low <= 0:
        raise SettingsError(f"{text}: a logarithmic range begins above 0, found {low:g}")
    return Dimension(key, low=low, high=high, log=log)


def _read(text: str, value: str) -> Any:
    try:
        return read_value(value)
    except YAMLError:
        raise SettingsError(f"{text}: {value!r} is not a YAML value; expected {FORMS}") from None


def read_space(settings: Settings) -> list[Dimension]:
    """The dimensions of `search.space`.

    Raises:
        SettingsError: Nothing is held out, a key can't be searched, or a value can't be taken.
    """
    if not settings.train.heldout_fraction:
        raise SettingsError(
            "train.heldout_fraction is 0: trials are judged by clips held out of train, never by "
            "the test split; set it, such as --set train.heldout_fraction=0.1"
        )
    if settings.train.devices > 1:
        raise SettingsError(
            f"train.devices is {settings.train.devices}: a search trains one head in one process; "
            "set it to 1"
        )
    dimensions = [parse_dimension(text) for text in settings.search.space]
    keys = [dimension.key for dimension in dimensions]
    if not keys or len(set(keys)) < len(keys):
        raise SettingsError(f"search.space: found {keys or 'nothing'}, expected each key once")
    for text, dimension in zip(settings.search.space, dimensions, strict=True):
        require_setting(dimension.key, f"search.space {text}")
        section, _, name = dimension.key.partition(".")
        if section not in SECTIONS or not name or dimension.key in COMMON | JUDGING:
            raise SettingsError(
                f"search.space {text}: {dimension.key} can't be searched; expected a setting of "
                f"{', '.join(SECTIONS)} that leaves maps and held-out clips as they are"
            )
        for value in dimension.ends:
            with_values(settings, {dimension.key: value})
    return dimensions


def present_values(settings: Settings, dimensions: list[Dimension]) -> dict[str, Any]:
    """The values that the settings have now."""
    content = settings.model_dump(mode="json")
    return {
        key: content[key.split(".")[0]][key.split(".")[1]] for key in (d.key for d in dimensions)
    }


def name_study(settings: Settings, dimensions: list[Dimension], store: str) -> str:
    """Of all that decides a trial's result but its values, and of what is varied.

    Args:
        store: Its `division`.
    """
    content = settings.model_dump(mode="json", include={"seed", *SECTIONS})
    for name in OF_THE_RUN:
        del content["train"][name]
    for section, name in (dimension.key.split(".") for dimension in dimensions):
        del content[section][name]
    space = settings.search.model_dump(mode="json", exclude={"num_trials", "minutes"})
    weights = settings.backbone.weights
    parts = {"settings": content, "space": space, "store": store, "weights": str(weights)}
    parts |= {"feed": order_of(settings.feed), "sources": digest_sources()}
    return sha256_json(parts)[:16]


# ---- the study -----------------------------------------------------------------------------------

OnEpoch = Callable[[dict[str, Any]], None]
TrainTrial = Callable[[int, dict[str, Any], OnEpoch], None]
"""Trains with some values; calls back with every epoch's entry, which may end the trial."""


def import_optuna() -> Any:
    """The package, quiet.

    Raises:
        MissingExtraError: It is not installed.
    """
    optuna = import_extra("optuna", "search")
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
        how: When a trial is ended early, and how many are drawn at random: "median" ends one that
            is worse at an epoch than the median of earlier trials there, "successive_halving" one
            that is not among the better quarter at epoch 1, 4, 16.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dimensions: Sequence[Dimension],
        *,
        present: Mapping[str, Any],
        seed: int,
        how: SearchSettings,
    ) -> None:
        self._optuna = import_optuna()
        self.dimensions = list(dimensions)
        self.seed = seed
        self.how = how
        self._study = self._optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / 'study.db'}",
            study_name=name,
            direction="maximize",
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
        began = time.monotonic()
        entries = list[dict[str, Any]]()

        def on_epoch(entry: dict[str, Any]) -> None:
            entries.append(entry)
            trial.report(_value_of(entry), entry["epoch"])
            if trial.should_prune():
                raise self._optuna.TrialPruned

        states = self._optuna.trial.TrialState
        state = "complete"
        try:
            train(trial.number, values, on_epoch)
        except self._optuna.TrialPruned:
            state = "pruned"
        except TrialRefused as error:
            state = "refused"
            trial.set_user_attr("reason", str(error))
        best = max(entries, key=_value_of, default=None)
        if best is not None and state != "refused":
            trial.set_user_attr("accuracy", best["heldout_accuracy"])
            trial.set_user_attr("loss", best["heldout_loss"])
        trial.set_user_attr("state", state)
        trial.set_user_attr("num_epochs", len(entries))
        trial.set_user_attr("seconds", time.monotonic() - began)
        if state == "complete" and best is not None:
            self._study.tell(trial, _value_of(best))
        else:
            self._study.tell(trial, state=states.PRUNED)
        return self._record(self._study.trials[trial.number])

    def _record(self, trial: Any) -> TrialRecord:
        said = trial.user_attrs
        return TrialRecord(
            trial.number,
            {d.key: trial.params[d.key] for d in self.dimensions},
            said.get("accuracy"),
            said.get("loss"),
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
        return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.how.startup_trials)

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self.how.pruner == "none":
            return pruners.NopPruner()
        if self.how.pruner == "successive_halving":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
        return pruners.MedianPruner(self.how.startup_trials, self.how.warmup_epochs)


def _value_of(entry: Mapping[str, Any]) -> float:
    """What an epoch is worth to a study: its accuracy; of equals the lower loss is worth more."""
    return float(entry["heldout_accuracy"] - 1e-6 * entry["heldout_loss"])


# ---- results -------------------------------------------------------------------------------------

NUM_SHOWN = 10
BEST_PARAMS = "best_params.yaml"  # in the search's folder


def write_trials(
    folder: Path,
    settings: Settings,
    trials: list[TrialRecord],
    study: str,
    adapted: Sequence[str] = (),
) -> None:
    """Write trials.json and, once a trial is complete, best_params.yaml into `folder`.

    Args:
        adapted: How trainings were fitted to few clips, in words.
    """
    made_by = settings.model_dump(mode="json", include={"search", "head", "udl", "train", "seed"})
    records: dict[str, Any] = {"study": study, "trials": [trial.to_json() for trial in trials]}
    if adapted:
        records["adapted"] = list(adapted)
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
    complete = ranked(trials)
    console = Console(highlight=False, markup=False, width=max(Console().width, 100))
    table = Table(title="Trials by held-out accuracy", title_justify="left")
    for column in ("trial", "accuracy", "loss", "epochs"):
        table.add_column(column, justify="right")
    keys = list(trials[0].values) if trials else []
    for key in keys:
        table.add_column(key.partition(".")[2].replace("_learning_rate_factor", "_factor"))
    for trial in complete[:NUM_SHOWN]:
        figures = f"{100 * (trial.accuracy or 0.0):.1f} %", f"{trial.loss:.4f}"
        values = [_shown(trial.values[key]) for key in keys]
        table.add_row(str(trial.number), *figures, str(trial.num_epochs), *values)
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
