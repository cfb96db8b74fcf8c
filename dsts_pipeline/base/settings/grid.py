"""The variants of an ablation as settings: listed ones, and every combination of a grid.

Enters: the settings of a run. Leaves: for each variant its name and the whole settings that it
is trained with, checked like those of a file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings.ablation import Kind, VariantSettings
from dsts_pipeline.base.settings.tree import Settings, reason_of, require_setting, setting_keys
from dsts_pipeline.base.settings.variants import read_value, with_values

# What a variant may change; the maps, the clips and how a run is run are common to all.
VARIED = ("head.", "udl.", "train.", "feed.order", "feed.shard_window", "feed.class_balanced")
COMMON = {"train.device", "train.devices", "train.checkpoint_every_batches"}
COMMON |= {"train.keep_checkpoints", "train.requeue_status", "train.tensorboard"}
COMMON |= {"train.data_seed"}


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
        name = " ".join(f"{key}={_show(value)}" for key, value in changes.items())
        if name not in names:
            listed.append(VariantSettings(name=name, settings=changes))
    return [_resolve(settings, variant) for variant in listed]


def read_grid(grid: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of "dotted.key=value,value,...", the last key varying fastest.

    Raises:
        SettingsError: It is no such text, a key is unknown, may not vary or comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in grid:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise SettingsError(
                f"--grid {text}: expected KEY=VALUE,VALUE, such as --grid head.num_neurons=5,10"
            )
        require_variable(key, f"--grid {text}")
        if key in axes:
            raise SettingsError(f"--grid {text}: {key} has values already; list all of them once")
        try:
            axes[key] = list(read_value(f"[{values}]"))
        except YAMLError:
            raise SettingsError(f"--grid {text}: {values!r} is no list of YAML values") from None
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


def overrides_of(experiment: str, folder: Path = Path("configs/experiment")) -> list[str]:
    """What a file of configs/experiment sets, as texts for --set.

    Args:
        experiment: Its name, or the path of such a file.

    Raises:
        SettingsError: There is no such file, or it is composed of other files.
    """
    path = Path(experiment) if experiment.endswith(".yaml") else folder / f"{experiment}.yaml"
    try:
        values = read_value(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        reason = type(error).__name__ if isinstance(error, OSError) else reason_of(error)
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        close = difflib.get_close_matches(experiment, names, n=1)
        raise SettingsError(
            f"--experiment {experiment}: {path} is not readable ({reason}); "
            + (f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}")
        ) from None
    if not isinstance(values, dict) or "defaults" in values:
        raise SettingsError(
            f"--experiment {experiment}: {path} is composed of other files; compose it with "
            f"`dvc exp run -S experiment={experiment}`"
        )
    return [f"{key}={json.dumps(value)}" for key, value in _leaves(values)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


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


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
