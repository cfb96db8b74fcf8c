"""The bundle that `export`, `predict` and `demo-app` work with: an exported one, or of this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.files import read_signed
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.head import load_head
from dsts_pipeline.serve import BackboneSource, Bundle, load_bundle
from dsts_pipeline.serve.bundle_parts import check_extracted
from stages import places
from stages.inputs import open_features


def open_bundle(settings: Settings, path: Path | None, weights: str | None = None) -> Bundle:
    """The bundle in the folder `path`, or without one that of this run's head.

    Raises:
        BundleError: Its parts are damaged or do not belong together.
        CheckpointError, DataError, StoreError: The run has no finished head or features.
    """
    return bundle_of_run(settings) if path is None else load_bundle(path, weights=weights)


def bundle_of_run(settings: Settings, head_name: str = "dsts") -> Bundle:
    """What outputs/heads and outputs/features.json hold, with the backbone of the settings.

    Raises:
        BundleError: They do not belong together.
        CheckpointError, DataError, StoreError: See `open_bundle`.
    """
    head, head_record = load_head(places.HEADS / head_name)
    store, chosen = open_features(settings.feed), settings.backbone
    made_of = store.manifest["made_of"]
    check_extracted(made_of)
    taps = chosen.taps or (made_of["backbone"].get("tap", "backbone"),)
    values = chosen.model_dump(include={"name", "weights", "num_frames", "size_px", "key_map"})
    source = BackboneSource(tap=taps[0], **values)
    return Bundle(
        head=head,
        head_record=head_record,
        backbone=source.build(chosen.weights_sha256),
        source=source,
        made_of=made_of,
        store={"fingerprint": store.fingerprint, "stored_type": store.stored_type},
        class_names=store.class_names,
        attribute_names=store.attribute_names,
        attributes=store.attributes,
        provenance={
            "features": store.manifest["provenance"],
            "bundle": collect_provenance({"backbone": chosen.model_dump(mode="json")}),
        },
        figures=_read_figures(head_name, store.fingerprint),
    )


def _read_figures(head_name: str, fingerprint: str) -> dict[str, Any] | None:
    """Of the last evaluation, if it was of these features."""
    if not places.METRICS.exists():
        return None
    metrics = read_signed(places.METRICS)
    if metrics["store"] != fingerprint or head_name not in metrics["heads"]:
        return None
    names = ("split", "evaluated", "failed", "missing", "interval")
    return {name: metrics[name] for name in names} | {"head": metrics["heads"][head_name]}
