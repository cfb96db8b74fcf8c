"""Settings: one strict, frozen pydantic model per section of params.yaml.

Enters: params.yaml and `--set key=value`. Leaves: a `Settings` tree. The core modules never see
these objects: `stages/` unpacks them into plain keyword arguments.
"""

from dsts_pipeline.base.settings.sections import Section
from dsts_pipeline.base.settings.tree import Settings, load_settings

__all__ = ["Section", "Settings", "load_settings"]
