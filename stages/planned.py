"""The place of the store that the settings describe, whether it exists or not."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from stages import places


def planned_store(settings: Settings) -> Path:
    """Directory of the store that `python cli.py extract` would write or go on with.

    Raises:
        CheckpointError, DataError: There is no clip index or no weights, so there is no plan.
    """
    index = ClipIndex.load(places.CLIP_INDEX)
    from dsts_pipeline.extract.backbones import build_backbone  # A second, if it comes to that.
    from stages.store_plan import plan_store

    chosen = settings.backbone
    backbone = build_backbone(
        chosen.name, weights=chosen.weights, num_frames=chosen.num_frames, size_px=chosen.size_px
    )
    return Path(settings.store.root) / plan_store(settings, index, backbone).fingerprint
