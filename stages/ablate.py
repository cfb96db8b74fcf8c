"""Train many variants in one pass over the cached maps, and compare them with the full model."""

from __future__ import annotations

from rich.console import Console

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import hold_alone, sign, write_atomic, write_json
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.grid import list_variants
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn.ablation import Runs
from dsts_pipeline.metrics.ablation import assemble_ablation, results_csv
from dsts_pipeline.metrics.ablation_table import ablation_table
from dsts_pipeline.metrics.intervals import Bootstrap
from stages import places
from stages.ablation_answers import answer
from stages.ablation_runs import plan_runs, train_runs
from stages.ablation_variants import describe_variants
from stages.classifier import classifier_of
from stages.inputs import open_features

WIDTH = 150


def run(settings: Settings) -> None:
    """Write outputs/ablation: runs, results.json, results.csv; print the table.

    Raises:
        BusyError: Another ablation is at work here.
        SettingsError: A variant can't be trained (told before anything is), or one diverged.
    """
    with hold_alone(places.ABLATION, "ablate"):
        _ablate(settings)


def _ablate(settings: Settings) -> None:
    variants, how = list_variants(settings), settings.evaluate
    seeds = [settings.seed + number for number in range(settings.ablate.num_seeds)]
    plans = {variant.name: plan_runs(variant, seeds, settings.seed) for variant in variants}
    everything = [plan for of_variant in plans.values() for plan in of_variant]
    store = open_features(settings.feed)
    sections = {"head": settings.head, "udl": settings.udl, "train": settings.train}
    sections |= {"feed": settings.feed, "evaluate": how, "ablate": settings.ablate}
    made_by = {name: section.model_dump(mode="json") for name, section in sections.items()}
    provenance = collect_provenance(made_by | {"seed": settings.seed})
    runs = Runs(
        places.ABLATION / "runs",
        places.ABLATION / "checkpoints",
        store.fingerprint,
        (store.map_shape[0], len(store.class_names)),
        classifier_of(settings.backbone.weights, store),
        {"provenance": provenance},
        settings.train.checkpoint_every_batches,
        settings.ablate.num_together,
    )
    rows = store.rows_of_split(how.split)
    runs.check(everything, store, store.rows_of_split("train"))
    failures = train_runs(settings, runs, everything, store)
    feed = FeatureFeed(store, rows, preload_bytes=settings.feed.preload_bytes)
    answers = answer(runs, everything, feed, how)
    results = assemble_ablation(
        describe_variants(variants, plans, runs, answers, failures, how.split),
        reference=settings.ablate.reference,
        split=how.split,
        store=store.fingerprint,
        seeds=seeds,
        bootstrap=Bootstrap(how.num_bootstrap, how.confidence, settings.seed),
        provenance=provenance,
    )
    write_json(places.ABLATION / "results.json", sign(results))
    write_atomic(places.ABLATION / "results.csv", results_csv(results).encode())
    Console(width=max(WIDTH, Console().width)).print(ablation_table(results))
    if failures:
        raise SettingsError(
            f"{len(failures)} of the trainings diverged: {next(iter(failures.values()))}"
        )
