"""How settings are read, changed and written (what they are: `settings`).

Enters: params.yaml (YAML 1.2, read as DVC reads it) and overrides "dotted.key=value", applied in
order. Leaves: a `Settings`. An unknown key is an error that names the closest known one, never a
default in silence.
"""

from __future__ import annotations

import difflib
import io
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.representer import RoundTripRepresenter

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import (
    OF_THE_RUN,
    Kind,
    Section,
    Settings,
    VariantSettings,
    check_together,
)

# ---- YAML ----------------------------------------------------------------------------------------
#
# As DVC reads it, 1.2, for params.yaml, experiments, --set and --grid. An alias (`*name`) stands
# for all that its anchor holds, so ten lines of aliases of aliases can stand for billions of
# values; what the text stands for is counted on its events, before a single value is made.

MAX_VALUES = 100_000
MAX_DEPTH = 50
_MAX_BITS = 1024


def read_yaml(text: str) -> Any:
    """The value of a YAML text; None of an empty one.

    Raises:
        YAMLError: It is no YAML, has names that are no plain values, or stands for too much.
    """
    try:
        _count_values(text)
        value = YAML(typ="safe", pure=True).load(text)
    except (ValueError, ArithmeticError, RecursionError) as error:  # 2001-99-99, 1e9999999999
        raise YAMLError(f"a value cannot be read ({error})") from None
    _require_plain(value)
    return value


def _count_values(text: str) -> None:
    """Refuse a text that is too deep, or whose aliases stand for too much or for themselves."""
    sizes: dict[str, int] = {}  # by anchor, of those that are complete
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    total = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
            continue
        if not isinstance(event, NodeEvent):
            continue
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_nodes]:
                raise YAMLError(f"{where}: *{event.anchor} is a part of itself")
            total += sizes.get(event.anchor, 1)  # an unknown one is told by the parser
        else:
            total += 1
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, total - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if total > MAX_VALUES:
            raise YAMLError(
                f"{where}: with its aliases (*name) the text stands for more than {MAX_VALUES:,} "
                "values; write out what is meant"
            )
        if len(open_nodes) > MAX_DEPTH:
            raise YAMLError(f"{where}: nested more than {MAX_DEPTH} levels deep")


def _require_plain(value: Any, depth: int = 0) -> None:
    """Names of a mapping are texts, numbers or truths, and numbers can be written out."""
    if depth > MAX_DEPTH:
        raise YAMLError(f"nested more than {MAX_DEPTH} levels deep by its aliases")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str | int | float | bool | None):
                raise YAMLError(f"{name!r} is the name of a value; expected a plain text")
            _require_plain(inner, depth + 1)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            _require_plain(inner, depth + 1)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise YAMLError(f"a whole number of {value.bit_length():,} bits; none has more than 1,024")


# ---- reading settings ----------------------------------------------------------------------------


_NO_CHECKPOINTS = "leave it out; the checkpoints of a finished training are deleted"
_DIVERGED = "leave it out; a training ends where its loss is not finite or above 1e6"
# Keys of earlier releases, and what to do instead.
REMOVED_SETTINGS = {
    "search.timeout_seconds": "write search.minutes, such as 30, for half an hour",
    "train.tensorboard": "write train.loggers: [dvclive, tensorboard]",
    "train.max_loss": _DIVERGED,
    "train.keep_checkpoints": _NO_CHECKPOINTS,
    "finetune.max_loss": _DIVERGED,
    "finetune.keep_checkpoints": _NO_CHECKPOINTS,
    "finetune.evaluation_batch": (
        "leave it out; evaluation takes as many clips at a time as training does "
        "(finetune.part_size, or finetune.batch_size)"
    ),
}


def load_settings(params: Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Read `params`, apply `overrides` in order, and check the result.

    Args:
        params: A YAML file whose top level holds sections; what it leaves out has its default.
            None: all have theirs.
        overrides: "dotted.key=value" each; the value is read as YAML ("5", "null", "[1, 2]"). A
            group's option, "dataset=folder", replaces the whole section by that of configs/.

    Raises:
        SettingsError: The file is missing or no mapping, a key is unknown, a value is of the
            wrong type or out of range, or settings don't fit together.
    """
    values = {} if params is None else _read_params(Path(params))
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
    for name in model.model_fields:
        yield prefix + name
        if section := section_of(model, name):
            yield from setting_keys(section, f"{prefix}{name}.")


def _read_params(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no such settings file; run in the folder of a project (`dsts new` makes one) "
            "or name a file by --params; `predict` and `demo-app` take a --bundle instead"
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
    if key == EXPERIMENT:
        for part in overrides_of(text):
            _apply_override(values, part)
        return
    require_setting(key, f"--set {override}")
    try:
        value = read_value(text)
    except YAMLError as error:
        raise SettingsError(
            f"--set {override}: {text!r} is not a YAML value ({reason_of(error)}); quote it as "
            f"'{key}=\"...\"'"
        ) from None
    if isinstance(value, str) and key in Settings.model_fields and section_of(Settings, key):
        value = read_group(key, value, f"--set {override}")
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
    found = _show(fault["input"])
    message = fault["msg"]
    if fault["type"] == "value_error":
        return f"found {found}; {message.removeprefix('Value error, ')}"
    message = message.removeprefix("Input should be ").replace("an object", "a section of settings")
    return f"found {found}, expected {message}"


def _unknown(key: str, known: set[str]) -> str:
    """What to say of a key that is none: what became of it, or the closest key by spelling."""
    if key in REMOVED_SETTINGS:
        return f"{key} is no setting any more: {REMOVED_SETTINGS[key]}"
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


# ---- settings changed and written ----------------------------------------------------------------


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """`settings` with the value of each dotted key replaced, checked like a file's.

    Raises:
        SettingsError: A key is unknown, a value of the wrong type or out of range, or the result
            does not fit together.
    """
    content = settings.model_dump(mode="json")
    for key, value in values.items():
        require_setting(key, f"{key}={value}")
        *sections, name = key.split(".")
        target = content
        for section in sections:
            target = target[section]
        target[name] = value
    try:
        changed = Settings.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        told = ", ".join(f"{key}={value}" for key, value in values.items())
        raise SettingsError(describe_fault(error, told)) from None
    check_together(changed)
    return changed


def read_value(text: str) -> Any:
    """A value as YAML reads it: "5", "null", "true", "[1, 2]".

    Raises:
        YAMLError: It is no YAML value.
    """
    return read_yaml(text) if text.strip() else ""


class _Representer(RoundTripRepresenter):
    """Writes "null" where ruamel would leave nothing."""

    def represent_none(self, value: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def settings_as_yaml(settings: Settings) -> str:
    """All settings, section by section, each key with its meaning: a file for --params."""
    writer = YAML()
    writer.Representer = _Representer
    writer.width = 1000  # a value and its comment stay on one line
    stream = io.StringIO()
    writer.dump(_commented(Settings, settings.model_dump(mode="json")), stream)
    return stream.getvalue()


def meaning_of(model: type[Section], name: str) -> str:
    """What a key is for, as its section says, or the one that this one inherits it from."""
    for owner in model.__mro__:
        field = getattr(owner, "model_fields", {}).get(name)
        if field is not None and field.description:
            return " ".join(field.description.split())
    raise KeyError(f"{model.__name__}.{name} has no text below it that says what it is for")


def _commented(model: type[Section], values: Mapping[str, Any]) -> CommentedMap:
    content = CommentedMap()
    for name, value in values.items():
        section = section_of(model, name)
        content[name] = _commented(section, value) if section and value is not None else value
        content.yaml_add_eol_comment(meaning_of(model, name), name, column=0)
    return content


def section_of(model: type[Section], name: str) -> type[Section] | None:
    """The section that a key holds, if it holds one."""
    annotation = model.model_fields[name].annotation
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and not isinstance(part, types.GenericAlias):
            if issubclass(part, Section):
                return part
    return None


# ---- groups of configs/ --------------------------------------------------------------------------
#
# Files that stand for many settings, composed as Hydra composes them for `dvc exp run -S`:
# configs/GROUP/OPTION.yaml is a section, over the options that its `defaults` name;
# configs/experiment/NAME.yaml is a choice of groups, and settings over them.

CONFIGS = Path("configs")
EXPERIMENT = "experiment"


def group_options(configs: Path = CONFIGS) -> dict[str, list[str]]:
    """The options of every group below `configs`, by name; empty where there is no such folder."""
    names = [*Settings.model_fields, EXPERIMENT]
    folders = [configs / name for name in names if (configs / name).is_dir()]
    return {each.name: sorted(file.stem for file in each.glob("*.yaml")) for each in folders}


def require_option(group: str, option: str, source: str, configs: Path = CONFIGS) -> None:
    """Refuse what is no option of a group, naming the closest one.

    Raises:
        SettingsError: There is no such option. The message begins with `source`.
    """
    options = group_options(configs).get(group)
    if options is None:
        raise SettingsError(
            f"{source}: there is no folder {configs / group} here, which would hold {option}; run "
            f"in the project's root, or give single settings, such as dataset.root"
        )
    if option not in options:
        close = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(options)}"
        raise SettingsError(f"{source}: there is no {configs / group / option}.yaml; {hint}")


def read_group(group: str, option: str, source: str, configs: Path = CONFIGS) -> dict[str, Any]:
    """The section that an option of a group stands for.

    Raises:
        SettingsError: There is no such option, or its file is composed in another way. The message
            begins with `source`.
    """
    require_option(group, option, source, configs)
    bases, own = _read_composed(configs / group / f"{option}.yaml", source)
    values: dict[str, Any] = {}
    for base in bases:
        if not isinstance(base, str) or base == option:
            raise _not_composable(source, configs / group / f"{option}.yaml", base)
        _merge(values, read_group(group, base, source, configs))
    return _merge(values, own)


def overrides_of(experiment: str, folder: Path = CONFIGS / EXPERIMENT) -> list[str]:
    """What a file of configs/experiment sets, as texts for --set, groups first.

    Args:
        experiment: Its name, or the path of such a file.

    Raises:
        SettingsError: There is no such file, or it is composed in another way.
    """
    path = Path(experiment) if experiment.endswith(".yaml") else folder / f"{experiment}.yaml"
    try:
        groups, values = _read_experiment(path, f"--experiment {experiment}")
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        reason = type(error).__name__ if isinstance(error, OSError) else reason_of(error)
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        close = difflib.get_close_matches(experiment, names, n=1)
        raise SettingsError(
            f"--experiment {experiment}: {path} is not readable ({reason}); "
            + (f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}")
        ) from None
    leaves = [f"{key}={json.dumps(value)}" for key, value in _leaves(values)]
    return [*(f"{group}={option}" for group, option in groups.items()), *leaves]


def _read_experiment(path: Path, source: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The groups that an experiment chooses, and its own settings, with those of its bases."""
    bases, own = _read_composed(path, source)
    groups: dict[str, str] = {}
    values: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    for base in bases:
        name, option = next(iter(base.items())) if isinstance(base, dict) else (None, base)
        if name is not None and name.startswith("override /"):
            chosen[name.removeprefix("override /")] = str(option)
        elif name is None and isinstance(option, str) and option != path.stem:
            of_base, settings_of_base = _read_experiment(path.with_name(f"{option}.yaml"), source)
            groups |= of_base
            _merge(values, settings_of_base)
        else:
            raise _not_composable(source, path, base)
    return groups | chosen, _merge(values, own)


def _read_composed(path: Path, source: str) -> tuple[list[Any], dict[str, Any]]:
    """What a file names below `defaults`, `_self_` left out, and its own values."""
    content = read_value(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise SettingsError(f"{source}: {path} holds {_show(content)}, expected settings")
    bases = content.pop("defaults", [])
    if not isinstance(bases, list) or "_self_" in bases[:-1]:
        # Hydra would lay what follows _self_ over the file's own values.
        raise _not_composable(source, path, bases)
    return [base for base in bases if base != "_self_"], content


def _not_composable(source: str, path: Path, part: object) -> SettingsError:
    return SettingsError(
        f"{source}: {path} is composed of {part}, which --set can't; use `dvc exp run -S`"
    )


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, changed in place: sections of `over` are laid over them, all else replaces."""
    for name, value in over.items():
        below = values.get(name)
        if isinstance(value, Mapping) and isinstance(below, dict):
            _merge(below, value)
        else:
            values[name] = value
    return values


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


# ---- the variants of an ablation -----------------------------------------------------------------

# What a variant may change; the maps, the clips and how a run is run are common to all.
VARIED = ("head.", "udl.", "train.", "feed.order", "feed.shard_window", "feed.class_balanced")
COMMON = {f"train.{name}" for name in (*OF_THE_RUN, "data_seed")}
# What a search may not change besides, in `ablate` and in `search`: which clips judge.
JUDGING = {"train.heldout_fraction", "train.heldout_by"}


@dataclass(frozen=True)
class Variant:
    """A variant, and the settings that it is trained with; `changes` is where it differs."""

    name: str
    title: str
    table: tuple[int, ...]
    kind: Kind
    changes: Mapping[str, Any]
    settings: Settings


def list_variants(settings: Settings) -> list[Variant]:
    """The reference first, then the listed variants, then the grid's.

    Raises:
        SettingsError: There is nothing to compare, a key is unknown or may not vary, a value does
            not fit.
    """
    chosen = settings.ablate
    unknown = set(chosen.leave_out) - {variant.name for variant in chosen.variants}
    if unknown:
        raise SettingsError(
            f"ablate.leave_out names {sorted(unknown)[0]}, which is none of ablate.variants; "
            f"expected some of {[variant.name for variant in chosen.variants]}"
        )
    listed = [variant for variant in chosen.variants if variant.name not in chosen.leave_out]
    if not listed and not chosen.grid:
        raise SettingsError(
            "nothing to compare: neither ablate.variants nor ablate.grid names a variant; the "
            "paper's tables are `python cli.py ablate --experiment paper_tables`, a grid is "
            "--grid head.num_neurons=5,10"
        )
    if chosen.reference not in [variant.name for variant in listed]:
        listed.insert(0, VariantSettings(name=chosen.reference, title="settings as they are"))
    listed.sort(key=lambda variant: variant.name != chosen.reference)
    names = {variant.name for variant in listed}
    for changes in read_grid(chosen.grid):
        name = " ".join(f"{key}={_show_of_grid(value)}" for key, value in changes.items())
        if name not in names:
            listed.append(VariantSettings(name=name, settings=changes))
    return [_resolve(settings, variant) for variant in listed]


def list_candidates(settings: Settings, variant: Variant) -> list[Variant]:
    """What `ablate.search` tries of a variant, `changes` being what differs from the variant.

    A key that the variant itself sets stays as it has it.

    Raises:
        SettingsError: As `list_variants`.
    """
    found: list[Variant] = []
    for combination in read_grid(settings.ablate.search, "ablate.search") or [{}]:
        if unfair := sorted(JUDGING & combination.keys()):
            raise SettingsError(
                f"ablate.search: {unfair[0]} decides which clips the values are judged by, so it "
                "can't be searched; give it to --set, or to --grid as a variant"
            )
        changes = {k: value for k, value in combination.items() if k not in variant.changes}
        if any(changes == one.changes for one in found):
            continue
        try:
            own = with_values(variant.settings, changes)
        except SettingsError as error:
            raise SettingsError(f"ablate.search: {error}") from None
        found.append(replace(variant, changes=changes, settings=own))
    return found


def read_grid(grid: Sequence[str], source: str = "--grid") -> list[dict[str, Any]]:
    """Every combination of "dotted.key=value,value,...", the last key varying fastest.

    Raises:
        SettingsError: It is no such text, a key is unknown, may not vary or comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in grid:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise SettingsError(
                f"{source} {text}: expected KEY=VALUE,VALUE, such as head.num_neurons=5,10"
            )
        require_variable(key, f"{source} {text}")
        if key in axes:
            raise SettingsError(f"{source} {text}: {key} has values already; list all of them once")
        try:
            axes[key] = list(read_value(f"[{values}]"))
        except YAMLError:
            raise SettingsError(f"{source} {text}: {values!r} is no list of YAML values") from None
    if not axes:
        return []
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def require_variable(key: str, source: str) -> None:
    """Refuse a key that is unknown or that all variants of an ablation have in common.

    Raises:
        SettingsError: It is one of them. The message begins with `source`.
    """
    require_setting(key, source)
    if key in COMMON or not key.startswith(VARIED):
        known = [name for name in setting_keys() if name.startswith(VARIED) and name not in COMMON]
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        advice = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(
            f"{source}: {key} is common to all variants, which share maps, batches and seeds; "
            f"settings of head, udl and train can vary{advice}"
        )


def _resolve(settings: Settings, variant: VariantSettings) -> Variant:
    source = f"variant {variant.name}"
    for key in variant.settings:
        require_variable(key, source)
    try:
        own = with_values(settings, variant.settings)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from None
    title = variant.title or variant.name
    return Variant(variant.name, title, variant.table, variant.kind, dict(variant.settings), own)


def _show_of_grid(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
