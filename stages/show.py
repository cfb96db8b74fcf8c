"""Print all settings as YAML: what --params would need to hold for the same run."""

from __future__ import annotations

import sys

from ruamel.yaml import YAML

from dsts_pipeline.base.settings import Settings


def run(settings: Settings) -> None:
    """Write the settings to standard output."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(settings.model_dump(mode="json"), sys.stdout)
