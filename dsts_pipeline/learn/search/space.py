"""What a search may vary: "key=low:high", "key=low:high:log" or "key=a,b,c"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml.error import YAMLError

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings.yaml import read_yaml

FORMS = "key=low:high, key=low:high:log or key=a,b,c"


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
