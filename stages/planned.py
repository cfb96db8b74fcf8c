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
    ClipIndex.load(places.CLIP_INDEX)  # Without one the answer is quick.
    from stages.store_plan import prepare_work  # Loads the backbone: a few seconds.

    return Path(settings.store.root) / prepare_work(settings).plan.fingerprint
