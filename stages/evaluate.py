"""Score every trained head on the test split, or on the one that settings are chosen by."""

from __future__ import annotations

from typing import Any

from dsts_pipeline.base.files import hold_alone, sign, write_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    RoutingOptions,
    assemble_metrics,
    assemble_routing,
    count_views,
    headline_figures,
    plot_tables,
)
from stages import places
from stages.fitting_head import load_fitting_head
from stages.inputs import open_features
from stages.plot_files import write_plot_tables
from stages.results import print_table
from stages.scores import Scoring, score_head


def run(settings: Settings) -> None:
    """Write each head's predictions, metrics, routing and tables for plots; print the results.

    Raises:
        BusyError: The heads are being trained, or evaluated by another process.
        CheckpointError: A head is damaged or was trained on another store.
    """
    with hold_alone(places.HEADS, "evaluate"):
        _evaluate(settings)


def _evaluate(settings: Settings) -> None:
    store, chosen = open_features(settings.feed), settings.evaluate
    # Imported features have no clip index; all that is missing there is a failure of the store.
    imported = "import" in store.manifest["made_of"]
    unusable = () if imported else ClipIndex.load(places.CLIP_INDEX).problems
    rows = store.rows_of_split(chosen.split)
    names = [name for name in places.HEAD_NAMES if (places.HEADS / name).exists()]
    for name in names:
        load_fitting_head(places.HEADS / name, store)  # told before a map is read
    feed = FeatureFeed(store, rows, preload_bytes=settings.feed.preload_bytes)
    scoring = Scoring(chosen.batch_size, chosen.temporal_need, settings.seed)
    heads = {}
    with track("Evaluating", len(names) * len(rows)) as progress:
        for name in names:
            heads[name] = score_head(places.HEADS / name, feed, scoring)
            heads[name].predictions.save(places.PREDICTIONS / f"{name}.npz")
            progress.advance(len(rows), name)
    failures = [clip for clip in store.manifest["failures"] if clip["split"] == chosen.split]
    views = count_views(feed.groups.tolist(), failures)
    problems = [problem for problem in unusable if problem.split == chosen.split]
    shared: dict[str, Any] = {
        "class_names": store.class_names,
        "attribute_names": store.attribute_names,
        "attributes": store.attributes,
        "bootstrap": Bootstrap(chosen.num_bootstrap, chosen.confidence, settings.seed),
    }
    metrics = assemble_metrics(
        heads,
        **shared,
        denominators=Denominators(views.num_clips, len(views.failed), missing=len(problems)),
        views=views.describe(),
        split=chosen.split,
        store=store.fingerprint,
        num_bins=chosen.num_bins,
        provenance=collect_provenance({"evaluate": chosen.model_dump(), "seed": settings.seed}),
    )
    options = RoutingOptions(chosen.num_permutations, chosen.temporal_need, seed=settings.seed)
    routing = assemble_routing(heads, **shared, options=options)
    write_json(places.METRICS, sign(metrics))
    write_json(places.ROUTING, sign(routing))
    write_json(places.HEADLINE, headline_figures(metrics))
    answers = {name: head.predictions for name, head in heads.items()}
    write_plot_tables(plot_tables(metrics, answers, routing))
    print_table(metrics)
