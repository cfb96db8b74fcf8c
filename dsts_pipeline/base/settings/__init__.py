"""Settings: one strict, frozen pydantic model per section of params.yaml.

Enters: params.yaml and `--set key=value`. Leaves: a `Settings` tree. `stages/` hands on single
sections, or unpacks them into plain keyword arguments: no other module sees the whole tree, but
for those that vary it (grids and searches).
"""

from dsts_pipeline.base.settings.sections import Section
from dsts_pipeline.base.settings.tree import Settings, load_settings

__all__ = ["Section", "Settings", "load_settings"]
