"""The content of an ablation's results.json and results.csv.

Enters: for every variant and seed its answers on the evaluated split. Leaves: figures with means,
spreads and intervals over seeds, each variant against the reference, ready for JSON, and a tidy
table of one row per variant and seed. Accuracies are fractions, 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import csv_text
from dsts_pipeline.metrics.accuracy import class_wise_accuracy, top_k_hits
from dsts_pipeline.metrics.calibration import negative_log_likelihood
from dsts_pipeline.metrics.heads import HeadResult
from dsts_pipeline.metrics.intervals import Bootstrap
from dsts_pipeline.metrics.predictions import align
from dsts_pipeline.metrics.routing.usage import dead_neurons, neuron_usage, usage_entropy
from dsts_pipeline.metrics.seeds import over_seeds, paired_over_clips, paired_over_seeds
from dsts_pipeline.metrics.significance import holm

FIGURES = ("top1", "top5", "class_wise")


@dataclass(frozen=True)
class AblationRun:
    """One training's answers.

    Args:
        seed: Of the training.
        result: Its answers and size.
        history: An entry per epoch; empty where nothing was trained.
        predictions_file: Where the answers are kept, as text.
    """

    seed: int
    result: HeadResult
    history: Sequence[Mapping[str, Any]] = ()
    predictions_file: str = ""


@dataclass(frozen=True)
class AblationVariant:
    """A variant: what it is called, which of the paper's tables it belongs to, how it differs."""

    title: str
    table: tuple[int, ...]
    settings: Mapping[str, Any]
    runs: Sequence[AblationRun]
    failures: Sequence[str] = field(default=())


def assemble_ablation(
    variants: Mapping[str, AblationVariant],
    *,
    reference: str,
    split: str,
    store: str,
    seeds: Sequence[int],
    bootstrap: Bootstrap,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        variants: By name, in the order of the table.
        reference: The variant that all others are compared with.
        seeds: Those that every variant was to be trained with.
        bootstrap: Resamples clips.

    Raises:
        DataError: No run, or runs that answered different clips.
    """
    if not any(variant.runs for variant in variants.values()):
        raise DataError("no finished training to describe; run `python cli.py ablate`")
    base = variants.get(reference)
    found = {
        name: _describe(variant, place, base if name != reference else None, bootstrap)
        for place, (name, variant) in enumerate(variants.items())
    }
    _adjust(found)
    return {
        "reference": reference,
        "split": split,
        "store": store,
        "seeds": list(seeds),
        "num_clips": next(len(r.result.predictions) for v in variants.values() for r in v.runs),
        "interval": {
            "method": "Student t over seeds",
            "confidence": 0.95,
            "by_clip": f"paired bootstrap by clip, {bootstrap.num_resamples} resamples",
        },
        "provenance": dict(provenance),
        "variants": found,
    }


def results_csv(results: Mapping[str, Any]) -> str:
    """One row per variant and seed, of what `assemble_ablation` returns."""
    ordered = sorted(results["variants"].items(), key=lambda item: item[1]["position"])
    deepest = max(
        (len(run["layers"]) for _, variant in ordered for run in variant["runs"]), default=0
    )
    layers = [f"layer_{n}_{what}" for n in range(1, deepest + 1) for what in ("entropy", "dead")]
    columns = ["variant", "title", "table", "seed", *FIGURES, "loss", "num_parameters"]
    columns += ["epochs", "best_epoch", "heldout_accuracy", "train_seconds", *layers]
    rows = []
    for name, variant in ordered:
        common = {"variant": name, "title": variant["title"]}
        common |= {"table": " ".join(map(str, variant["table"]))}
        for run in variant["runs"]:
            row = common | {key: run[key] for key in columns if key in run}
            for number, layer in enumerate(run["layers"], start=1):
                row |= {f"layer_{number}_{key}": layer[key] for key in ("entropy", "dead")}
            rows.append([row.get(column) for column in columns])
    return csv_text(columns, rows)


def _describe(
    variant: AblationVariant, place: int, base: AblationVariant | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    runs = [_describe_run(run) for run in variant.runs]
    figures = {name: over_seeds([run[name] for run in runs]) if runs else None for name in FIGURES}
    return {
        "title": variant.title,
        "table": list(variant.table),
        "settings": dict(variant.settings),
        "position": place,
        "num_parameters": variant.runs[0].result.num_parameters if runs else None,
        "runs": runs,
        "failures": list(variant.failures),
        **figures,
        "versus_reference": None if base is None else _compare(variant, base, bootstrap),
    }


def _describe_run(run: AblationRun) -> dict[str, Any]:
    predictions, history = run.result.predictions, run.history
    hits = {k: top_k_hits(predictions.probabilities, predictions.labels, k) for k in (1, 5)}
    best = [entry["epoch"] for entry in history if entry.get("best")]
    held = [entry["heldout_accuracy"] for entry in history if "heldout_accuracy" in entry]
    chosen = held[best[-1]] if best and held else None
    loss = negative_log_likelihood(predictions.probabilities, predictions.labels)
    return {
        "seed": run.seed,
        "top1": float(hits[1].mean()),
        "top5": float(hits[5].mean()),
        "class_wise": class_wise_accuracy(hits[1], predictions.labels, predictions.num_classes),
        "loss": float(loss.mean()),
        "num_parameters": run.result.num_parameters,
        "epochs": len(history),
        "best_epoch": best[-1] + 1 if best else 0 if held else None,  # 0: the untrained head
        "heldout_accuracy": chosen,
        "train_seconds": float(sum(entry["seconds"] for entry in history)),
        "layers": _layers(run.result),
        "predictions": run.predictions_file,
    }


def _layers(result: HeadResult) -> list[dict[str, Any]]:
    if result.predictions.neurons is None or result.num_neurons is None:
        return []
    usage = neuron_usage(result.predictions.routes()[0], result.num_neurons)
    return [{"entropy": float(usage_entropy(u)), "dead": int(dead_neurons(u))} for u in usage]


def _compare(
    variant: AblationVariant, base: AblationVariant, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """Against the reference, on the seeds that both have."""
    others = {run.seed: run for run in base.runs}
    pairs = [(run, others[run.seed]) for run in variant.runs if run.seed in others]
    if not pairs:
        return None
    own, other = [], []
    for run, of_base in pairs:
        first = of_base.result.predictions
        second = align(first, run.result.predictions)
        own.append(top_k_hits(second.probabilities, second.labels, 1))
        other.append(top_k_hits(first.probabilities, first.labels, 1))
    top1 = [[float(hits.mean()) for hits in side] for side in (own, other)]
    by_class = [
        [class_wise_accuracy(hits, first.labels, first.num_classes) for hits in side]
        for side in (own, other)
    ]
    return paired_over_seeds(top1[0], top1[1]) | {
        "class_wise": paired_over_seeds(by_class[0], by_class[1]),
        "by_clip": paired_over_clips(np.stack(own), np.stack(other), bootstrap),
    }


def _adjust(variants: Mapping[str, dict[str, Any]]) -> None:
    """Add Holm's p-values over all comparisons with the reference."""
    compared = [v["versus_reference"] for v in variants.values() if v["versus_reference"]]
    known = [versus for versus in compared if versus["p_value"] is not None]
    adjusted = holm(np.array([versus["p_value"] for versus in known]))
    for versus in compared:
        versus["p_value_holm"] = None
    for versus, p_value in zip(known, adjusted, strict=True):
        versus["p_value_holm"] = float(p_value)
