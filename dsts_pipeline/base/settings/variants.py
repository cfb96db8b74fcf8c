"""Settings with some values replaced, and settings as a file that --params takes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings.together import check_together
from dsts_pipeline.base.settings.tree import Settings, describe_fault, require_setting
from dsts_pipeline.base.settings.yaml import read_yaml


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


def settings_as_yaml(settings: Settings) -> str:
    """All settings, section by section: a file for --params."""
    writer, stream = YAML(typ="safe", pure=True), io.StringIO()
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(settings.model_dump(mode="json"), stream)
    return stream.getvalue()
