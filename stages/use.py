"""Keep a user's choices in configs/, and compose params.yaml from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from dsts_pipeline.base.choices import CHOICES, Choices, tell_value
from dsts_pipeline.base.errors import SettingsError, import_extra, tell_briefly
from dsts_pipeline.base.files import hold_alone, write_atomic
from dsts_pipeline.base.params import (
    CONFIGS,
    describe_fault,
    load_settings,
    setting_keys,
    settings_as_yaml,
)
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings, check_together

_NUM_SHOWN = 8
_FIRST_USE = "python cli.py use dataset=folder dataset.root=/data/mine"


def run(texts: Sequence[str], params: Path, *, reset: bool) -> None:
    """Add `texts` to the choices and compose `params`; without any, show them; or forget them.

    Raises:
        SettingsError: A choice is none, or the settings that come of them are unsound; nothing is
            written then.
    """
    if not CONFIGS.is_dir():
        raise SettingsError(
            f"there is no folder {CONFIGS} here, which params.yaml is composed of; run in the "
            "project's root"
        )
    if reset and texts:
        raise SettingsError("--reset forgets all choices; give it alone, then choose anew")
    if not reset and not texts:
        _show(params)
        return
    with hold_alone(CHOICES, "use"):
        if reset:
            _forget(params)
        else:
            _add(texts, params)


def _add(texts: Sequence[str], params: Path) -> None:
    choices = Choices()
    before = _compose(choices)
    dropped = choices.add(texts)
    after = _compose(choices)
    lost = _find_lost(params, before, after)
    choices.save()
    write_atomic(params, settings_as_yaml(after).encode())
    _tell(f"{CHOICES}: {' '.join(choices.texts())}")
    if dropped:
        _tell(f"dropped with the earlier choice of its group: {' '.join(dropped)}")
    if changed := _differing(after, before):
        _tell(f"changed by that: {_list(changed)}")
    _tell(f"{params}: composed of it; `dvc exp run -S ...` adds to it")
    _tell_lost(params, lost)


def _show(params: Path) -> None:
    choices = Choices()
    chosen = choices.texts()
    if not chosen:
        _tell(f"You have chosen nothing yet; `{_FIRST_USE}`, for example, keeps it in {CHOICES}")
        return
    for text in chosen:
        _tell(text)
    _tell(f"kept in {CHOICES}; `python cli.py use --reset` forgets them all, the data set, too")
    differing = _differing(load_settings(params), _compose(choices))
    if differing:
        _tell(f"{params} differs from these choices in: {_list(differing)}")


def _forget(params: Path) -> None:
    before = None
    if CHOICES.exists() or CHOICES.is_symlink():
        with suppress(SettingsError):  # what is forgotten need not be sound
            before = _compose(Choices())
        if CHOICES.is_dir() and not CHOICES.is_symlink():
            raise SettingsError(f"{CHOICES}: is a folder; remove it")
        CHOICES.unlink()
    after = _compose(Choices())
    lost = _find_lost(params, before or after, after)
    write_atomic(params, settings_as_yaml(after).encode())
    _tell(f"{params}: the defaults again; your choices are forgotten")
    _tell(f"the data set is {after.dataset.name} in {after.dataset.root}" + _tell_rendered(after))
    _tell_lost(params, lost)


def _tell_rendered(settings: Settings) -> str:
    return ", which `prepare` renders" if settings.dataset.render else ""


def _compose(choices: Choices) -> Settings:
    """What configs/ compose to with `choices`, which need not be saved.

    Raises:
        SettingsError: They do not compose, or the result is unsound.
    """
    hydra = import_extra("hydra", "composing configs/")
    omegaconf = import_extra("omegaconf", "composing configs/")
    yaml = import_extra("yaml", "composing configs/")
    hydra_errors = import_extra("hydra.errors", "composing configs/")
    # Of a file that was changed by hand, Hydra and YAML also raise what they did not foresee.
    faults = (
        hydra_errors.HydraException,
        omegaconf.errors.OmegaConfBaseException,
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    )
    with TemporaryDirectory() as folder:
        configs = Path(folder) / CONFIGS.name
        shutil.copytree(CONFIGS, configs)
        copy = Path(folder) / CHOICES
        copy.unlink(missing_ok=True)
        if choices.texts():
            copy.write_text(choices.as_yaml(), encoding="utf-8")
        try:
            with hydra.initialize_config_dir(str(configs), version_base=None):
                composed = hydra.compose("config")
            values = omegaconf.OmegaConf.to_container(composed, resolve=True)
        except faults as error:
            told = tell_briefly(error).replace(f"{folder}/", "")
            raise SettingsError(
                f"{CHOICES}: does not compose ({told}); correct it, or `python cli.py use --reset`"
            ) from None
    try:
        settings = Settings.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise SettingsError(describe_fault(error, str(CHOICES), "the choice")) from None
    check_together(settings)
    return settings


def _value_of(settings: Settings, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name, None)  # of a section that is null
    return value


def _differing(found: Settings, composed: Settings) -> list[str]:
    """Settings of `found` that `composed` has not, sections in parts."""
    keys = list(setting_keys())
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    return [
        f"{key}={tell_value(_value_of(found, key))}"
        for key in leaves
        if _value_of(found, key) != _value_of(composed, key)
    ]


def _find_lost(params: Path, before: Settings, after: Settings) -> list[str]:
    """What the settings file holds that was composed neither before nor now."""
    if not params.exists():
        return []
    try:
        found = load_settings(params)
    except SettingsError:  # an unsound file is replaced
        return []
    kept = set(_differing(found, after))
    return [text for text in _differing(found, before) if text in kept]


def _tell_lost(params: Path, lost: list[str]) -> None:
    if lost:
        _tell(f"no more in {params}, since it was set there alone: {_list(lost)}")


def _list(texts: list[str]) -> str:
    rest = f" and {len(texts) - _NUM_SHOWN} more" if len(texts) > _NUM_SHOWN else ""
    return " ".join(texts[:_NUM_SHOWN]) + rest


def _tell(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
