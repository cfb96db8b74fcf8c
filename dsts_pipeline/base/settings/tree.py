"""The tree of all settings, and how it is read.

Enters: params.yaml (YAML 1.2, read as DVC reads it) and overrides "dotted.key=value", applied in
order. Leaves: a `Settings`. An unknown key is an error that names the closest known one, never a
default in silence.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml.error import YAMLError

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings.ablation import AblateSettings
from dsts_pipeline.base.settings.data import BackboneSettings, DatasetSettings, PretrainSettings
from dsts_pipeline.base.settings.features import FeedSettings, StoreSettings
from dsts_pipeline.base.settings.finetuning import FinetuneSettings
from dsts_pipeline.base.settings.learning import HeadSettings, TrainSettings, UdlSettings
from dsts_pipeline.base.settings.results import EvaluateSettings, ReportSettings
from dsts_pipeline.base.settings.searching import SearchSettings
from dsts_pipeline.base.settings.sections import Section
from dsts_pipeline.base.settings.together import check_together
from dsts_pipeline.base.settings.yaml import read_yaml


class Settings(Section):
    """Everything that a run depends on besides code and data: one section per stage's concern."""

    seed: int = Field(0, ge=0)
    dataset: DatasetSettings = DatasetSettings()
    backbone: BackboneSettings = BackboneSettings()
    store: StoreSettings = StoreSettings()
    feed: FeedSettings = FeedSettings()
    head: HeadSettings = HeadSettings()
    udl: UdlSettings = UdlSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    search: SearchSettings = SearchSettings()
    ablate: AblateSettings = AblateSettings()


def load_settings(params: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read `params`, apply `overrides` in order, and check the result.

    Args:
        params: A YAML file whose top level holds sections; what it leaves out has its default.
        overrides: "dotted.key=value" each; the value is read as YAML ("5", "null", "[1, 2]").

    Raises:
        SettingsError: The file is missing or no mapping, a key is unknown, a value is of the
            wrong type or out of range, or settings don't fit together.
    """
    values = _read_params(Path(params))
    for override in overrides:
        _apply_override(values, override)
    try:
        # JSON mode: lists of YAML fit tuples, while numbers, texts and truths stay strictly apart.
        settings = Settings.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        where = f"{params} or the --set option" if overrides else str(params)
        raise SettingsError(describe_fault(error, str(params), where)) from None
    check_together(settings)
    return settings


def setting_keys(model: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """All dotted keys of `model`, sections included, in the order of their definition."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and not isinstance(part, types.GenericAlias):
                if issubclass(part, Section):
                    yield from setting_keys(part, f"{prefix}{name}.")


def _read_params(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no such settings file; run from the repository's root or name one by --params"
        ) from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(
            f"{path}: not readable as YAML: {reason_of(error)}; correct it"
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path}: found {_show(values)} at the top level, expected sections such as "
            "'head:'; see params.yaml of the repository"
        )
    return values


def reason_of(error: Exception) -> str:
    """What a YAML parser found and in which line, without its excerpts and advice."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = f"line {mark.line + 1}: {problem}" if problem and mark else str(error)
    return " ".join(text.split())


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SettingsError(
            f"--set {override}: expected KEY=VALUE, such as --set head.num_neurons=5"
        )
    require_setting(key, f"--set {override}")
    try:
        value = read_yaml(text) if text.strip() else ""
    except YAMLError as error:
        raise SettingsError(
            f"--set {override}: {text!r} is not a YAML value ({reason_of(error)}); quote it as "
            f"'{key}=\"...\"'"
        ) from None
    *sections, name = key.split(".")
    target = values
    for section in sections:
        if not isinstance(target.get(section), dict):
            target[section] = {}
        target = target[section]
    target[name] = value


def require_setting(key: str, source: str) -> None:
    """Refuse a dotted key that is no setting, naming the closest one.

    Raises:
        SettingsError: There is no such setting. The message begins with `source`.
    """
    known = set(setting_keys())
    if key not in known:
        raise SettingsError(f"{source}: {_unknown(key, known)}")


def describe_fault(error: ValidationError, source: str, where: str | None = None) -> str:
    """One or two lines for the first fault, and how many more there are.

    Args:
        source: Where the values come from. where: The same, as a place to correct them in.
    """
    known = set(setting_keys())
    # A misspelt name first: it may well be the cause of the others.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        text = f"{source}: {_unknown(key, known)}"
    else:
        while key and key not in known:  # positions in lists, branches of unions
            key = key.rpartition(".")[0]
        text = f"{key or source}: {_expected(fault)}; correct it in {where or source}"
    more = len(faults) - 1
    return text + (f"\n(and {more} more fault{'s' if more > 1 else ''})" if more else "")


def _expected(fault: Mapping[str, Any]) -> str:
    """What was found and what was expected, in our own words where a section says it itself."""
    found, message = _show(fault["input"]), fault["msg"]
    if fault["type"] == "value_error":
        return f"found {found}; {message.removeprefix('Value error, ')}"
    message = message.removeprefix("Input should be ").replace("an object", "a section of settings")
    return f"found {found}, expected {message}"


def _unknown(key: str, known: set[str]) -> str:
    """What to say of a key that nobody knows: the closest known key by spelling."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:
        leaf = key.rpartition(".")[2]
        close = [name for name in sorted(known) if name.rpartition(".")[2] == leaf][:1]
    hint = f"did you mean {close[0]}?" if close else "`python cli.py show` lists all settings"
    return f"{key} is not a setting; {hint}"


def _show(value: Any) -> str:
    names = {str: "text", bool: "a truth value", dict: "a section", list: "a list"}
    kind = names.get(type(value), "a number")
    text = json.dumps(value, default=str)
    text = text if len(text) <= 60 else text[:57] + "..."
    return "nothing (null)" if value is None else f"{text} ({kind})"
