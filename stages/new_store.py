"""The store that a newly trained backbone's maps will have, and the command that makes it."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.settings import Settings
from stages.store_plan import prepare_work


def store_of_weights(settings: Settings, weights: Path) -> str:
    """The fingerprint of the store that `extraction_command` makes."""
    changed = {"weights": str(weights), "weights_sha256": None, "key_map": "auto"}
    backbone = settings.backbone.model_copy(update=changed)
    return prepare_work(settings.model_copy(update={"backbone": backbone})).plan.fingerprint


def extraction_command(settings: Settings, weights: Path) -> str:
    """How to extract the maps of the backbone in `weights` as a new store."""
    changes = [f"backbone.weights={weights}"]
    if settings.backbone.weights_sha256 is not None:
        changes.append("backbone.weights_sha256=null")
    if settings.backbone.key_map != "auto":
        changes.append("backbone.key_map=auto")
    return " ".join(["python cli.py extract", *(f"--set {change}" for change in changes)])
