"""Print all settings as YAML: what --params would need to hold for the same run."""

from __future__ import annotations

import sys

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.variants import settings_as_yaml


def run(settings: Settings) -> None:
    """Write the settings to standard output."""
    sys.stdout.write(settings_as_yaml(settings))
