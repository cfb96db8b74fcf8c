"""A user's own choices, a file of configs/ that every composition of params.yaml lies on.

Enters: choices as `dvc exp run -S` has them, "dataset=folder", "head.width=16". Leaves:
configs/experiment/mine.yaml, which configs/config.yaml takes in below `experiment`, so that what is
composed later, with other choices, adds to it. What was written by hand there stays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.base.params import (
    CONFIGS,
    EXPERIMENT,
    group_options,
    read_value,
    reason_of,
    require_option,
    require_setting,
)

CHOICES = CONFIGS / EXPERIMENT / "mine.yaml"
_OVERRIDE = "override /"
_SELF = "_self_"
_START = f"""\
# @package _global_
# Your choices, written by `python cli.py use` and yours to edit: `dvc exp run` and the next `use
# KEY=VALUE` compose params.yaml from it. A key that `dvc exp run -S` names replaces the one here; a
# group (-S dataset=...) does not: keys of that section here stay.
defaults:
- {_SELF}
"""


class Choices:
    """The content of the file, comments included; of an empty one where there is no such file.

    Raises:
        SettingsError: The file is not readable as what `use` writes.
    """

    def __init__(self, path: Path = CHOICES) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else _START
            content = YAML().load(text)
        except (YAMLError, ValueError, OSError, RecursionError) as error:
            raise SettingsError(
                f"{path}: not readable as YAML: {reason_of(error)}; correct it, or forget it by "
                "`python cli.py use --reset`"
            ) from None
        bases = content.get("defaults") if isinstance(content, dict) else None
        if not isinstance(bases, list):
            raise SettingsError(
                f"{path}: found no list `defaults`, which `use` adds groups to; add it (it may be "
                "`defaults: [_self_]`), or forget the file by `python cli.py use --reset`"
            )
        self._content: dict[str, Any] = content
        self._bases = bases

    def add(self, texts: Sequence[str]) -> list[str]:
        """Add choices, or replace earlier ones, groups first; return what was dropped with them.

        Another option of a group begins that section anew: what was chosen in it before is dropped.

        Raises:
            SettingsError: One is no such choice; nothing is changed then.
        """
        groups: dict[str, str] = {}
        values: dict[str, Any] = {}
        for text in texts:
            key, equals, value = (part.strip() for part in text.partition("="))
            if not equals or not value:
                raise SettingsError(
                    f"use {text}: expected GROUP=OPTION or KEY=VALUE, such as dataset=folder or "
                    "dataset.root=/data/mine"
                )
            if key in group_options():
                require_option(key, value, f"use {text}")
                groups[key] = value
            else:
                values[key] = _literal(_read(key, value, text))
        dropped: list[str] = []
        for group, option in groups.items():
            dropped += self._choose(group, option)
        for key, value in values.items():
            *sections, name = key.split(".")
            target = self._content
            for section in sections:
                if not isinstance(target.get(section), dict):
                    target[section] = {}
                target = target[section]
            target[name] = value
        return dropped

    def _choose(self, group: str, option: str) -> list[str]:
        """Name a group's option; return what was chosen within another option of it."""
        if group == EXPERIMENT:
            for place, base in enumerate(self._bases):
                if isinstance(base, str) and base != _SELF:
                    self._bases[place] = option
                    return []
            self._bases.insert(0, option)
            return []
        name = f"{_OVERRIDE}{group}"
        for base in self._bases:
            if isinstance(base, dict) and name in base:
                if base[name] == option:
                    return []
                base[name] = option
                break
        else:
            end = self._bases.index(_SELF) if _SELF in self._bases else len(self._bases)
            self._bases.insert(end, {name: option})
        dropped = [f"{group}.{text}" for text in _told(self._content.pop(group, {}))]
        if group == "dataset" and self._has_experiment() and _renders_nothing(option):
            self._content[group] = {"render": None}  # over what the experiment renders
        return dropped

    def _has_experiment(self) -> bool:
        return any(isinstance(base, str) and base != _SELF for base in self._bases)

    def texts(self) -> list[str]:
        """All choices as `add` takes them, groups first."""
        found = []
        for base in self._bases:
            if isinstance(base, dict):
                found += [f"{name.removeprefix(_OVERRIDE)}={base[name]}" for name in base]
            elif base != _SELF:
                found.append(f"{EXPERIMENT}={base}")
        own = {name: value for name, value in self._content.items() if name != "defaults"}
        return [*found, *_told(own)]

    def as_yaml(self) -> str:
        """The file's text."""
        stream = io.StringIO()
        writer = YAML()
        writer.width = 1000
        writer.dump(self._content, stream)
        return stream.getvalue()

    def save(self) -> None:
        """Write the file."""
        write_atomic(self.path, self.as_yaml().encode())


def _read(key: str, value: str, text: str) -> Any:
    require_setting(key, f"use {text}")
    try:
        return read_value(value)
    except YAMLError as error:
        raise SettingsError(
            f"use {text}: {value!r} is no YAML value ({reason_of(error)})"
        ) from None


def _literal(value: Any) -> Any:
    """A value that Hydra reads as it is meant.

    Texts are quoted, since YAML 1.1 takes more words for other things, such as `on`; what OmegaConf
    would take for a reference, `${...}`, is escaped.
    """
    if isinstance(value, str):
        return DoubleQuotedScalarString(value.replace("${", r"\${"))
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value


def _told(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _told(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={tell_value(value)}"


def tell_value(value: Any) -> str:
    """A value as it is given on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _renders_nothing(option: str) -> bool:
    """Whether a data set's file says that its videos are there."""
    content = YAML(typ="safe").load((CONFIGS / "dataset" / f"{option}.yaml").read_text("utf-8"))
    return "render" in content and content["render"] is None
