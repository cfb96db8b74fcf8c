"""Score every trained head on the test split, or on the one that settings are chosen by."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import hold_alone, sign, write_atomic, write_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import EvaluateSettings, Settings
from dsts_pipeline.clips.index import ClipIndex, Problem
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    align,
    assemble_metrics,
    assemble_routing,
    count_views,
    headline_figures,
    plot_tables,
    print_results,
)
from dsts_pipeline.metrics.fusion import SECOND_STREAM, TWO_STREAMS, fuse_heads, read_stream
from dsts_pipeline.metrics.scoring import load_fitting_head, score_head
from stages import common


def run(settings: Settings) -> None:
    """Write each head's predictions, metrics, routing and tables for plots; print the results.

    Raises:
        BusyError: The heads are being trained, or evaluated by another process.
        CheckpointError: A head is damaged or was trained on another store.
    """
    with hold_alone(common.HEADS, "evaluate"):
        _evaluate(settings)


def _evaluate(settings: Settings) -> None:
    chosen = settings.evaluate
    store = open_features(common.FEATURES, settings.feed, settings.dataset)
    # Imported features have no clip index; all that is missing there is a failure of the store. Of
    # a clip without a file nobody knows which fold it would be in.
    imported = "import" in store.manifest["made_of"]
    left_out = imported or store.fold is not None
    unusable = () if left_out else _read_problems(store)
    rows = store.rows_of_split(chosen.split)
    names = [name for name in common.HEAD_NAMES if (common.HEADS / name).exists()]
    for name in names:
        load_fitting_head(common.HEADS / name, store)  # told before a map is read
    feed = FeatureFeed.from_settings(store, rows, settings.feed)
    heads = {}
    with track("Evaluating", len(names) * len(rows)) as progress:
        for name in names:
            heads[name] = score_head(common.HEADS / name, feed, chosen, seed=settings.seed)
            heads[name].predictions.save(common.PREDICTIONS / f"{name}.npz")
            progress.advance(len(rows), name)
    for name in (SECOND_STREAM, TWO_STREAMS):  # those of an earlier evaluation
        (common.PREDICTIONS / f"{name}.npz").unlink(missing_ok=True)
    if chosen.fuse.run is not None:
        heads |= _fused(chosen, heads)
    failures = [clip for clip in store.manifest["failures"] if clip["split"] == chosen.split]
    views = count_views(feed.groups.tolist(), failures, num_joined=store.num_joined)
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
        provenance=collect_provenance(
            {"evaluate": chosen.model_dump(), "seed": settings.seed} | store.describe_reading()
        ),
    )
    routing = assemble_routing(heads, **shared, how=chosen, seed=settings.seed)
    write_json(common.METRICS, sign(metrics))
    write_json(common.ROUTING, sign(routing))
    write_json(common.HEADLINE, headline_figures(metrics))
    answers = {name: head.predictions for name, head in heads.items()}
    _write_plot_tables(plot_tables(metrics, answers, routing))
    print_results(metrics)


def _read_problems(store: FeatureStore) -> tuple[Problem, ...]:
    """Clips that the index left out.

    Raises:
        DataError: The index is of other classes: features and heads are of an earlier data set.
    """
    index = ClipIndex.load(common.CLIP_INDEX)
    if tuple(index.class_names) != tuple(store.class_names):
        raise DataError(
            f"{common.CLIP_INDEX} names {len(index.class_names)} classes of {index.dataset}, and "
            f"{common.FEATURES} has maps of {len(store.class_names)} others; run `dvc repro`, or "
            "`python cli.py extract` and `train-head` first"
        )
    return index.problems


def _fused(chosen: EvaluateSettings, heads: Mapping[str, HeadResult]) -> dict[str, HeadResult]:
    """The other run's head, and both together; their answers are written as those of any head.

    Raises:
        DataError: A run has no such head, or they were evaluated on other clips.
    """
    fuse = chosen.fuse
    if fuse.head not in heads:
        raise DataError(f"evaluate.fuse.head is {fuse.head!r}, expected one of {list(heads)}")
    if Path(str(fuse.run)).resolve() == common.OUTPUTS.resolve():
        raise DataError(f"evaluate.fuse.run is {fuse.run}, this run itself; name another's outputs")
    folder = Path(str(fuse.run)) / common.EVALUATION.relative_to(common.OUTPUTS)
    other, _ = read_stream(folder, fuse.head, chosen.split)
    own = heads[fuse.head]
    second = replace(
        other,
        title=f"{other.title}, second stream",
        predictions=align(own.predictions, other.predictions),
    )
    both = fuse_heads([own, second], [1 - fuse.weight, fuse.weight])
    found = {SECOND_STREAM: second, TWO_STREAMS: both}
    for name, head in found.items():
        head.predictions.save(common.PREDICTIONS / f"{name}.npz")
    return found


def _write_plot_tables(tables: Mapping[str, str]) -> None:
    """Write the CSV texts that `dvc plots show` draws, by path below outputs/evaluation/plots."""
    shutil.rmtree(common.PLOT_TABLES, ignore_errors=True)  # of heads that are gone
    for name, text in tables.items():
        write_atomic(common.PLOT_TABLES / name, text.encode())
