"""Score every trained head on the test split, or on the one that settings are chosen by."""

from __future__ import annotations

from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    assemble_metrics,
    count_views,
    headline_figures,
)
from stages import places
from stages.inputs import open_features
from stages.results import print_table
from stages.scores import load_fitting_head, score_head


def run(settings: Settings) -> None:
    """Write the predictions of each head, metrics.json and headline.json; print the table.

    Raises:
        CheckpointError: A head is damaged or was trained on another store.
    """
    store, chosen = open_features(settings.feed), settings.evaluate
    # Imported features have no clip index; all that is missing there is a failure of the store.
    imported = "import" in store.manifest["made_of"]
    unusable = () if imported else ClipIndex.load(places.CLIP_INDEX).problems
    rows = store.rows_of_split(chosen.split)
    names = [name for name in places.HEAD_NAMES if (places.HEADS / name).exists()]
    for name in names:
        load_fitting_head(places.HEADS / name, store)  # told before a map is read
    feed = FeatureFeed(store, rows, preload_bytes=settings.feed.preload_bytes)
    heads = {}
    with track("Evaluating", len(names) * len(rows)) as progress:
        for name in names:
            heads[name] = score_head(places.HEADS / name, feed, batch_size=chosen.batch_size)
            heads[name].predictions.save(places.PREDICTIONS / f"{name}.npz")
            progress.advance(len(rows), name)
    failures = [clip for clip in store.manifest["failures"] if clip["split"] == chosen.split]
    views = count_views(feed.groups.tolist(), failures)
    problems = [problem for problem in unusable if problem.split == chosen.split]
    metrics = assemble_metrics(
        heads,
        denominators=Denominators(views.num_clips, len(views.failed), missing=len(problems)),
        views=views.describe(),
        split=chosen.split,
        store=store.fingerprint,
        bootstrap=Bootstrap(chosen.num_bootstrap, chosen.confidence, settings.seed),
        attribute_names=store.attribute_names,
        attributes=store.attributes,
        provenance=collect_provenance({"evaluate": chosen.model_dump(), "seed": settings.seed}),
    )
    write_json(places.METRICS, metrics)
    write_json(places.HEADLINE, headline_figures(metrics))
    print_table(metrics)
