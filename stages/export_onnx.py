"""The trained head, alone or behind its backbone, as an ONNX file, which holds no code."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.settings import Settings
from stages.export_models import export


def write(settings: Settings, out: Path, *, head: str = "dsts", whole: bool = False) -> None:
    """Write `out`; see `export_models.export`."""
    export(settings, out, "onnx", head, whole)
