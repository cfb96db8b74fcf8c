"""Cache the frozen backbone's map of every clip in the index."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.failures import ClipFailure, check_failures
from dsts_pipeline.extract.progress import summarize
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.checks.earlier import find_earlier_maps
from dsts_pipeline.feature_store.manifest import record_store
from dsts_pipeline.feature_store.space import require_space, survey_store
from stages import places
from stages.extract_options import extraction_options, plan_views
from stages.store_plan import plan_taps, prepare_work


def run(
    settings: Settings,
    engine: Literal["processes", "ray"] = "processes",
    num_workers: int | None = None,
    earlier: str | None = None,
) -> None:
    """Finish the store of these settings and write its manifest to outputs/features.json.

    What may differ between two extractions of the same bytes stays in the store's own manifest.

    Args:
        num_workers: With the engine "ray": backbones at work.
        earlier: A store made under the former rule of frames; what is sound of it is copied.

    Raises:
        CheckpointError, DataError, StoreError: See the parts; the finished shards stay.
    """
    chosen, work = settings.backbone, prepare_work(settings)
    index, backbone, _ = work
    plans = plan_taps(settings, work)
    known = None
    if earlier is not None:
        known = find_earlier_maps(
            open_store(earlier), plan_views(settings, index, backbone), plans[0]
        )
        num_rows = len(plans[0].samples)
        console.print(f"{earlier}: {len(known.rows):,} of {num_rows:,} maps are taken over")
    for plan in plans:
        require_space(survey_store(settings.store.root, plan))
    with ExitStack() as stack:
        writers = [stack.enter_context(StoreWriter(settings.store.root, p)) for p in plans]
        if engine == "ray":
            from stages.on_cluster import extract_by_ray

            pending = {shard for each in writers for shard in each.pending_shards()}
            summary = extract_by_ray(settings, work, pending, num_workers)
        else:
            options = extraction_options(settings) | {"earlier": known}
            summary = extract_features(index, backbone, writers, **options)
        sections = {
            "backbone": chosen.model_dump(mode="json"),
            "dataset": settings.dataset.model_dump(mode="json", include={"flip", "flip_pairs"}),
        }
        manifests = [read_json(w.finish(collect_provenance(sections))) for w in writers]
    manifest = manifests[0]
    # Also those of earlier runs that were interrupted, or had another limit.
    failures = [ClipFailure(failure["id"], failure["reason"]) for failure in manifest["failures"]]
    check_failures(failures, len(index.clips), max_failed_fraction=chosen.max_failed_fraction)
    others = {tap: str(w.path) for tap, w in zip(backbone.taps[1:], writers[1:], strict=True)}
    write_json(places.FEATURES, record_store(manifest, writers[0].path, others))
    console.print(summarize(str(writers[0].path), manifest["counts"], summary))


def plan_store(settings: Settings) -> StorePlan:
    """The plan of the store that `run` finishes.

    Raises:
        CheckpointError, DataError: There is no clip index, or no sound weights.
    """
    return prepare_work(settings).plan
