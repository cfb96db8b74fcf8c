"""Bring features that were made elsewhere into a store that train-head and evaluate read."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import StoreWriter
from dsts_pipeline.feature_store.exchange.import_labels import read_labels
from dsts_pipeline.feature_store.exchange.import_sources import (
    StoreSource,
    doubt_layout,
    open_source,
)
from dsts_pipeline.feature_store.exchange.importing import plan_import, survey_source, write_import
from dsts_pipeline.feature_store.manifest import record_store
from dsts_pipeline.feature_store.space import require_space, survey_store
from stages import places


def run(
    settings: Settings,
    *,
    source: Path,
    labels: Path,
    name: str | None = None,
    axes: str | None = None,
    dataset: str | None = None,
    ids_dataset: str | None = None,
) -> None:
    """Write the store and, as `extract` does, its manifest to outputs/features.json.

    Raises:
        DataError: The source or the labels can't be used; see the parts.
        StoreError: The store can't be written; the finished shards stay.
    """
    table = read_labels(labels)
    features = open_source(source, axes=axes, dataset=dataset, ids_dataset=ids_dataset)
    with track("check features", len(table.rows), "maps") as progress:
        survey = survey_source(
            features,
            table.rows,
            max_failed_fraction=settings.backbone.max_failed_fraction,
            on_maps=progress.advance,
        )
    doubt = "" if isinstance(features, StoreSource) else doubt_layout(survey.map_shape, axes)
    for note in filter(None, (*table.notes, doubt)):
        console.print(note, soft_wrap=True, markup=False)
    store = settings.store.model_dump(exclude={"root"})
    plan = plan_import(features, table, survey, name=name or source.stem, **store)
    require_space(survey_store(settings.store.root, plan))
    origin = {"source": source.name, "labels": labels.name, "layout": axes}
    with (
        StoreWriter(settings.store.root, plan) as writer,
        track("import features", len(table.rows), "maps") as progress,
    ):
        provenance = collect_provenance({"import": origin})
        manifest = read_json(
            write_import(
                features,
                table.rows,
                survey,
                writer,
                provenance=provenance,
                on_maps=progress.advance,
            )
        )
    write_json(places.FEATURES, record_store(manifest, writer.path))
    for failure in manifest["failures"][:5]:
        console.print(f"failed: {failure['id']}: {failure['reason']}", soft_wrap=True)
    counts = manifest["counts"]
    unlisted = features.num_items - counts["stored"]
    console.print(
        f"{writer.path}: {counts['stored']:,} maps of {'x'.join(map(str, plan.map_shape))}, "
        f"{counts['failed']:,} clips failed; {max(0, unlisted):,} items of the source not used",
        soft_wrap=True,
    )
