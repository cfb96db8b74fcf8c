"""The trained head, alone or behind its backbone, as a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.head import load_head
from dsts_pipeline.serve.model_files import (
    Exported,
    FileFormat,
    Subject,
    head_subject,
    times_table,
    whole_subject,
    write_model,
)
from dsts_pipeline.serve.real_clips import decode_some, read_some
from stages import places
from stages.bundles import bundle_of_run
from stages.inputs import open_features

NUM_MAPS, NUM_VIDEOS = 64, 16  # of evaluate.split: what an export is compared on


def export(settings: Settings, out: Path, kind: FileFormat, head: str, whole: bool) -> None:
    """Write `out` and `out`.json; print what was found.

    Raises:
        UserError: Parts are missing or do not belong together, or the export differs from PyTorch.
    """
    store, split = open_features(settings.feed), settings.evaluate.split
    trained, made = load_head(places.HEADS / head)
    if made.get("store") != store.fingerprint:
        raise CheckpointError(
            f"{places.HEADS / head}: trained on store {made.get('store')}, the features are those "
            f"of {store.fingerprint}; run `python cli.py train-head`"
        )
    if whole:
        bundle, index = bundle_of_run(settings, head), ClipIndex.load(places.CLIP_INDEX)
        frames = decode_some(bundle, index, split, NUM_VIDEOS)
        subject = whole_subject(bundle.backbone, trained, frames)
    else:
        subject = head_subject(trained, read_some(store, split, NUM_MAPS))
    exported = write_model(out, subject, kind, _record(settings, store, made, subject))
    _tell(out, exported, split)


def _record(
    settings: Settings, store: FeatureStore, made: dict[str, Any], subject: Subject
) -> dict[str, Any]:
    return {
        "title": made["title"],
        "model": "backbone and head" if subject.input_name == "frames" else "head",
        "class_names": list(store.class_names),
        "store": store.fingerprint,
        "made_of": store.manifest["made_of"],
        "compared_on": settings.evaluate.split,
        "provenance": {"head": made.get("provenance"), "export": collect_provenance({})},
    }


def _tell(out: Path, exported: Exported, split: str) -> None:
    found = exported.comparison
    routed = f", {found.num_routings} different routings" if found.num_routings else ""
    console.print(
        f"{out}: {format_bytes(exported.num_bytes)}; equals PyTorch on {found.num_clips} clips of "
        f"{split}{routed}: largest difference of a logit {found.largest_difference:.1e}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(times_table(exported.times))
