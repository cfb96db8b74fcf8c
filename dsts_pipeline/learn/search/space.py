"""What a search may vary: "key=low:high", "key=low:high:log" or "key=a,b,c".

It is checked before anything runs, and gives the search its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml.error import YAMLError

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.tree import require_setting
from dsts_pipeline.base.settings.variants import with_values
from dsts_pipeline.base.settings.yaml import read_yaml
from dsts_pipeline.learn.identity import digest_sources
from dsts_pipeline.learn.options import OF_THE_RUN, options_of_feed

FORMS = "key=low:high, key=low:high:log or key=a,b,c"
SECTIONS = "head", "udl", "train"
# What decides the clips that trials are judged by has to be the same for all of them.
FIXED = {f"train.{name}" for name in OF_THE_RUN | {"heldout_fraction", "data_seed"}}


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
        return read_yaml(value) if value.strip() else ""
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
        if section not in SECTIONS or not name or dimension.key in FIXED:
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
    """Of all that decides a trial's result but its values, and of what is varied."""
    content = settings.model_dump(mode="json", include={"seed", *SECTIONS})
    for name in OF_THE_RUN:
        del content["train"][name]
    for section, name in (dimension.key.split(".") for dimension in dimensions):
        del content[section][name]
    space = settings.search.model_dump(mode="json", exclude={"num_trials", "timeout_seconds"})
    weights = settings.backbone.weights
    parts = {"settings": content, "space": space, "store": store, "weights": str(weights)}
    parts |= {"feed": options_of_feed(settings.feed), "sources": digest_sources()}
    return sha256_json(parts)[:16]
