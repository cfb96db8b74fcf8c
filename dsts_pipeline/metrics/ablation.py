"""An ablation's results.json, results.csv and table on a terminal, beside the paper's figures.

Enters: for every variant and seed its answers on the evaluated split, or of all clips, each by the
fold of a cross-validation that held it out. Leaves: figures with means, spreads and intervals over
seeds (or folds), each variant against the reference, ready for JSON; a tidy table
of one row per variant and seed; and a rich table, plain text when piped. Accuracies are fractions,
0..1, and percent where people read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import csv_text
from dsts_pipeline.metrics.accuracy import class_wise_accuracy
from dsts_pipeline.metrics.calibration import negative_log_likelihood
from dsts_pipeline.metrics.intervals import (
    Bootstrap,
    holm,
    over_folds,
    over_groups,
    over_seeds,
    paired_over_clips,
    paired_over_folds,
    paired_over_seeds,
)
from dsts_pipeline.metrics.predictions import HeadResult, Predictions, align
from dsts_pipeline.metrics.routing import describe_use, neuron_usage
from dsts_pipeline.metrics.summary import points_text

# ---- results.json and results.csv ---------------------------------------------------------------

FIGURES = ("top1", "top5", "class_wise")


@dataclass(frozen=True)
class AblationRun:
    """One training's answers.

    Args:
        seed: Of the training.
        result: Its answers and size.
        history: An entry per epoch; empty where nothing was trained.
        predictions_file: Where the answers are kept, as text.
        folds: Of a cross-validation the trainings whose answers `result` joins, by fold.
        chosen: What the search chose by held-out clips, by setting.
        tried: All that it had tried with this seed, as `settings` and `accuracy` on the clips that
            it chose by.
    """

    seed: int
    result: HeadResult
    history: Sequence[Mapping[str, Any]] = ()
    predictions_file: str = ""
    folds: Mapping[int, AblationRun] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    tried: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class AblationVariant:
    """A variant: what it is called, which of the paper's tables it belongs to, how it differs."""

    title: str
    table: tuple[int, ...]
    settings: Mapping[str, Any]
    runs: Sequence[AblationRun]
    failures: Sequence[str] = field(default=())


@dataclass(frozen=True)
class CrossValidation:
    """How clips were dealt into folds of whole groups.

    Args:
        num_folds: Two at least.
        seed: By which they were dealt.
        folds: The fold that holds each clip out, by its id.
        groups: The number of each clip's group, by its id.
    """

    num_folds: int
    seed: int
    folds: Mapping[str, int]
    groups: Mapping[str, int]

    def folds_of(self, predictions: Predictions) -> np.ndarray:
        """The fold of each clip, int64 `[n]`."""
        return np.array([self.folds[clip] for clip in predictions.clip_ids], dtype=np.int64)

    def groups_of(self, predictions: Predictions) -> np.ndarray:
        """The number of each clip's group, int64 `[n]`."""
        return np.array([self.groups[clip] for clip in predictions.clip_ids], dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """For results.json."""
        clips = [0] * self.num_folds
        for fold in self.folds.values():
            clips[fold] += 1
        found = {"num_folds": self.num_folds, "seed": self.seed, "num_clips": clips}
        return found | {"num_groups": len(set(self.groups.values()))}


def assemble_ablation(
    variants: Mapping[str, AblationVariant],
    *,
    reference: str,
    split: str,
    store: str,
    seeds: Sequence[int],
    bootstrap: Bootstrap,
    provenance: Mapping[str, Any],
    dealt: CrossValidation | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        variants: By name, in the order of the table.
        reference: The variant that all others are compared with.
        seeds: Those that every variant was to be trained with.
        bootstrap: Resamples clips, or whole groups of them.
        dealt: The folds of a cross-validation, over which intervals are taken then; None: there
            are none, and they are taken over seeds.

    Raises:
        DataError: No run, or runs that answered different clips.
    """
    if not any(variant.runs for variant in variants.values()):
        raise DataError("no finished training to describe; run `python cli.py ablate`")
    base = variants.get(reference)
    found = {
        name: _describe(variant, place, base if name != reference else None, bootstrap, dealt)
        for place, (name, variant) in enumerate(variants.items())
    }
    _adjust(found)
    over = "seeds" if dealt is None else "folds, corrected for training clips that they share"
    drawn = "clip" if dealt is None else "whole group"
    return {
        "reference": reference,
        "split": split,
        "store": store,
        "seeds": list(seeds),
        "num_clips": next(len(r.result.predictions) for v in variants.values() for r in v.runs),
        "interval": {
            "method": f"Student t over {over}",
            "confidence": 0.95,
            "by_clip": f"paired bootstrap by {drawn}, {bootstrap.num_resamples} resamples",
        },
        "provenance": dict(provenance),
        "variants": found,
    } | ({} if dealt is None else {"folds": dealt.describe()})


def results_csv(results: Mapping[str, Any]) -> str:
    """One row per variant and seed, of what `assemble_ablation` returns.

    Of a cross-validation that row is over all clips (`fold` is "all"), and one per fold follows.
    """
    ordered = sorted(results["variants"].items(), key=lambda item: item[1]["position"])
    deepest = max(
        (len(run["layers"]) for _, variant in ordered for run in variant["runs"]), default=0
    )
    layers = [f"layer_{n}_{what}" for n in range(1, deepest + 1) for what in ("entropy", "dead")]
    has_folds = "folds" in results
    columns = ["variant", "title", "table", "seed", *(["fold"] if has_folds else [])]
    columns += [*FIGURES, "loss", "num_parameters"]
    columns += ["epochs", "best_epoch", "heldout_accuracy", "train_seconds", *layers]
    rows = []
    for name, variant in ordered:
        common = {"variant": name, "title": variant["title"]}
        common |= {"table": " ".join(map(str, variant["table"]))}
        every = (part for run in variant["runs"] for part in (run, *run.get("folds", ())))
        for run in every:
            row = common | {"fold": "all"} | {key: run[key] for key in columns if key in run}
            for number, layer in enumerate(run["layers"], start=1):
                row |= {f"layer_{number}_{key}": layer[key] for key in ("entropy", "dead")}
            rows.append([row.get(column) for column in columns])
    return csv_text(columns, rows)


def _describe(
    variant: AblationVariant,
    place: int,
    base: AblationVariant | None,
    bootstrap: Bootstrap,
    dealt: CrossValidation | None,
) -> dict[str, Any]:
    runs = [_describe_run(run) for run in variant.runs]
    figures = {name: over_seeds([run[name] for run in runs]) if runs else None for name in FIGURES}
    by_clip = {}
    if dealt is not None and runs:
        figures = _figures_over_folds(variant, dealt)
        first = variant.runs[0].result.predictions
        hits = _hits(variant.runs, first, 1)
        by_clip = {"by_clip": over_groups(hits.mean(axis=0), dealt.groups_of(first), bootstrap)}
    return {
        "title": variant.title,
        "table": list(variant.table),
        "settings": dict(variant.settings),
        "position": place,
        "num_parameters": variant.runs[0].result.num_parameters if runs else None,
        "runs": runs,
        "failures": list(variant.failures),
        **figures,
        **by_clip,
        "versus_reference": None if base is None else _compare(variant, base, bootstrap, dealt),
    }


def _figures_over_folds(variant: AblationVariant, dealt: CrossValidation) -> dict[str, Any]:
    """Each figure over all clips, with its spread and interval over folds."""
    first = variant.runs[0].result.predictions
    folds = dealt.folds_of(first)
    even, by_class = _weights(first)
    right = _hits(variant.runs, first, 1).mean(axis=0)
    among_five = _hits(variant.runs, first, 5).mean(axis=0)
    return {
        "top1": over_folds(right, even, folds),
        "top5": over_folds(among_five, even, folds),
        "class_wise": over_folds(right, by_class, folds),
    }


def _hits(runs: Sequence[AblationRun], first: Predictions, k: int) -> np.ndarray:
    """Whether each run is right among its k most probable, bool `[runs, clips]`, as in `first`."""
    return np.stack([align(first, run.result.predictions).hits(k) for run in runs])


def _weights(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """What each clip counts in top-1 and in class-wise accuracy, float64 `[n]` that add up to 1."""
    counts = np.bincount(predictions.labels, minlength=predictions.num_classes)
    even = np.full(len(predictions), 1.0 / len(predictions))
    return even, 1.0 / (counts[predictions.labels] * np.count_nonzero(counts))


def _describe_run(run: AblationRun) -> dict[str, Any]:
    predictions = run.result.predictions
    history = run.history
    hits = predictions.hits()
    best = [entry["epoch"] for entry in history if entry.get("best")]
    held = [entry for entry in history if "heldout_accuracy" in entry]
    kept = held[-1] if held else {}
    loss = negative_log_likelihood(predictions.probabilities, predictions.labels)
    described = {
        "seed": run.seed,
        "top1": float(hits.mean()),
        "top5": float(predictions.hits(5).mean()),
        "class_wise": class_wise_accuracy(hits, predictions.labels, predictions.num_classes),
        "loss": float(loss.mean()),
        "num_parameters": run.result.num_parameters,
        "epochs": len(history),
        "best_epoch": best[-1] + 1 if best else 0 if held else None,  # 0: the untrained head
        "heldout_accuracy": kept.get("best_accuracy"),  # what chose it; also the untrained head's
        "heldout_loss": kept.get("best_loss"),
        "train_seconds": float(sum(entry["seconds"] for entry in history)),
        "layers": _layers(run.result),
        "predictions": run.predictions_file,
    }
    if run.chosen:
        described["chosen"] = dict(run.chosen)
    if run.tried:
        described["tried"] = list(run.tried)
    return described | _join_folds(run.folds) if run.folds else described


def _join_folds(folds: Mapping[int, AblationRun]) -> dict[str, Any]:
    """What a cross-validation says in place of one training: sums, and means over the folds."""
    parts = [
        _describe_run(run) | {"fold": fold, "num_clips": len(run.result.predictions)}
        for fold, run in folds.items()
    ]
    held = [part["heldout_accuracy"] for part in parts if part["heldout_accuracy"] is not None]
    layers = [
        {key: float(np.mean([layer[key] for layer in layer_of_folds])) for key in layer_of_folds[0]}
        for layer_of_folds in zip(*(part["layers"] for part in parts), strict=True)
    ]
    return {
        "epochs": sum(part["epochs"] for part in parts),
        "heldout_accuracy": float(np.mean(held)) if held else None,
        "train_seconds": sum(part["train_seconds"] for part in parts),
        "layers": layers,
        "folds": parts,
    }


def _layers(result: HeadResult) -> list[dict[str, Any]]:
    if result.predictions.neurons is None or result.num_neurons is None:
        return []
    usage = neuron_usage(result.predictions.routes()[0], result.num_neurons)
    return [{key: describe_use(row)[key] for key in ("entropy", "dead")} for row in usage]


def _compare(
    variant: AblationVariant,
    base: AblationVariant,
    bootstrap: Bootstrap,
    dealt: CrossValidation | None,
) -> dict[str, Any] | None:
    """Against the reference, on the seeds that both have."""
    others = {run.seed: run for run in base.runs}
    pairs = [(run, others[run.seed]) for run in variant.runs if run.seed in others]
    if not pairs:
        return None
    own = []
    other = []
    for run, of_base in pairs:
        first = of_base.result.predictions
        if dealt is not None:  # clips are compared across seeds, too: all in one order
            first = align(pairs[0][1].result.predictions, first)
        own.append(align(first, run.result.predictions).hits())
        other.append(first.hits())
    if dealt is not None:
        return _compare_over_folds(np.stack(own), np.stack(other), pairs, bootstrap, dealt)
    top1 = [[float(hits.mean()) for hits in side] for side in (own, other)]
    by_class = [
        [class_wise_accuracy(hits, first.labels, first.num_classes) for hits in side]
        for side in (own, other)
    ]
    return paired_over_seeds(*top1) | {
        "class_wise": paired_over_seeds(*by_class),
        "by_clip": paired_over_clips(np.stack(own), np.stack(other), bootstrap),
    }


def _compare_over_folds(
    own: np.ndarray,
    other: np.ndarray,
    pairs: Sequence[tuple[AblationRun, AblationRun]],
    bootstrap: Bootstrap,
    dealt: CrossValidation,
) -> dict[str, Any]:
    """The same, clip by clip, over folds and over whole groups.

    Args:
        own, other: Hits `[seeds, clips]`, in the order of the reference's first run.
    """
    first = pairs[0][1].result.predictions
    difference = (own.astype(np.float64) - other).mean(axis=0)
    folds = dealt.folds_of(first)
    even, by_class = _weights(first)
    found = paired_over_folds(difference, even, folds)
    by_clip = over_groups(difference, dealt.groups_of(first), bootstrap)
    return found | {
        "class_wise": paired_over_folds(difference, by_class, folds),
        "by_clip": {"difference": found["difference"]} | by_clip,
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


# ---- figures that the paper reports (its Tables 1 to 7), as context beside a run's own ----------
#
# Source: Li, Foo et al., Dynamic Spatio-Temporal Specialization Learning for Fine-Grained Action
# Recognition, ECCV 2022, arXiv 2209.01425. Percent. They were measured by its authors, on their
# data and with full-size backbones trained end to end: never mix them into a run's own tables.

CITATION = "Li, Foo et al., ECCV 2022, arXiv 2209.01425"


@dataclass(frozen=True)
class PaperTable:
    """One table: what varies, column names, rows of text; `best` is the paper's own setting."""

    number: int
    about: str
    dataset: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[int, ...]


_CLASS_WISE = ("top-1", "class-wise")
METHODS = "methods"  # Tables 1 and 2: other systems, not variants of the paper's own

# Heads that are systems of Tables 1 and 2, and the names of their rows.
PAPER_SYSTEMS = {"two_streams": "TSM, two streams"}
PAPER_TABLES = (
    PaperTable(
        1,
        METHODS,
        "Something-Something V2",
        ("method", "top-1", "top-5"),
        (
            ("SlowFast", "63.1", "87.6"),
            ("TPN", "64.7", "88.1"),
            ("ViViT-L", "65.4", "89.8"),
            ("TSM, two streams", "66.6", "91.3"),
            ("MViT-B", "67.7", "90.9"),
            ("Swin-B", "69.6", "92.7"),
            ("TPN with DSTS", "67.2", "89.2"),
            ("Swin-B with DSTS", "71.8", "93.7"),
        ),
        (6, 7),
    ),
    PaperTable(
        2,
        METHODS,
        "Diving48",
        ("method", *_CLASS_WISE),
        (
            ("I3D", "48.3", "33.2"),
            ("TSM, two streams", "52.5", "32.7"),
            ("GST", "78.9", "69.5"),
            ("TQN", "81.8", "74.5"),
            ("Swin-B", "80.5", "69.7"),
            ("TPN", "86.2", "76.0"),
            ("Swin-B with DSTS", "83.0", "71.5"),
            ("TPN with DSTS", "88.4", "78.2"),
        ),
        (6, 7),
    ),
    PaperTable(
        3,
        "spatio-temporal specialization",
        "Diving48, TPN",
        ("variant", *_CLASS_WISE),
        (
            ("without STS", "87.2", "76.5"),
            ("without gates", "87.3", "76.7"),
            ("full", "88.4", "78.2"),
        ),
        (2,),
    ),
    PaperTable(
        4,
        "synapse",
        "Diving48, TPN",
        ("variant", *_CLASS_WISE, "parameters"),
        (
            ("baseline TPN", "86.2", "76.0", "63 M"),
            ("without synapse", "86.5", "76.4", "75 M"),
            ("full", "88.4", "78.2", "75 M"),
        ),
        (2,),
    ),
    PaperTable(
        5,
        "upstream-downstream learning",
        "Diving48, TPN",
        ("variant", *_CLASS_WISE),
        (("without UDL", "87.4", "76.7"), ("with UDL", "88.4", "78.2")),
        (1,),
    ),
    PaperTable(
        6,
        "neurons per layer",
        "Diving48, TPN",
        ("N", *_CLASS_WISE),
        (("5", "87.3", "76.2"), ("10", "88.4", "78.2"), ("15", "88.3", "78.2")),
        (1,),
    ),
    PaperTable(
        7,
        "layers",
        "Diving48, TPN",
        ("L", *_CLASS_WISE),
        (("1", "87.5", "76.8"), ("3", "88.4", "78.2"), ("5", "88.2", "78.2")),
        (1,),
    ),
)

# Which row of which table a variant of configs/experiment/paper_tables.yaml stands beside.
PAPER_ROWS = {
    2: {"gst": "GST", "tqn": "TQN", "full": "TPN with DSTS"},
    3: {"without_sts": "without STS", "without_gates": "without gates", "full": "full"},
    4: {"baseline": "baseline TPN", "without_synapse": "without synapse", "full": "full"},
    5: {"without_udl": "without UDL", "full": "with UDL"},
    6: {"neurons_5": "5", "full": "10", "neurons_15": "15"},
    7: {"layers_1": "1", "full": "3", "layers_5": "5"},
}


def paper_figures(table: int, variant: str) -> dict[str, float] | None:
    """Percent, by "top1" and "class_wise", of a variant in Tables 2 to 7; None if not there."""
    label = PAPER_ROWS.get(table, {}).get(variant)
    if label is None:
        return None
    rows = next(found.rows for found in PAPER_TABLES if found.number == table)
    row = next(row for row in rows if row[0] == label)
    return {"top1": float(row[1]), "class_wise": float(row[2])}


# ---- on a terminal: our figures beside the paper's, table by table ------------------------------

DASH = "-"


def ablation_table(results: Mapping[str, Any]) -> Table:
    """Sections are the paper's Tables 2 to 7; what belongs to none of them comes last.

    Args:
        results: what `assemble_ablation` returns.
    """
    num_seeds = f"{len(results['seeds'])} seed{'s' if len(results['seeds']) > 1 else ''}"
    where = f"on the {results['split']} split (percent; {num_seeds}, 95 % intervals over seeds)"
    if folds := results.get("folds"):
        where = (
            f"over {folds['num_folds']} folds of whole groups (percent of all clips; {num_seeds}, "
            "95 % intervals over folds)"
        )
    table = Table(
        title=f"Ablation {where}",
        caption=_caption(results),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    versus = f"top-1 vs {results['reference']}"
    for heading in ("top-1", "class-wise", "parameters", versus, "p", "paper", "paper's"):
        table.add_column(heading, justify="right", no_wrap=True)
    variants = sorted(results["variants"].items(), key=lambda item: item[1]["position"])
    about = {found.number: found.about for found in PAPER_TABLES}
    for number in sorted({number for _, variant in variants for number in variant["table"]}):
        own = [(name, variant) for name, variant in variants if number in variant["table"]]
        order = list(PAPER_ROWS.get(number, {}))
        own.sort(key=lambda item: order.index(item[0]) if item[0] in order else len(order))
        heading = f"Table {number}: {about.get(number, 'not the paper’s')}"
        table.add_row(Text(heading, style="bold"))
        for name, variant in own:
            table.add_row(*_row(name, variant, number, results["reference"]))
        table.add_section()
    rest = [(name, variant) for name, variant in variants if not variant["table"]]
    if rest:
        table.add_row(Text("In none of the paper's tables", style="bold"))
    for name, variant in rest:
        table.add_row(*_row(name, variant, None, results["reference"]))
    return table


def _row(name: str, variant: Mapping[str, Any], number: int | None, reference: str) -> list[Any]:
    paper = None if number is None else paper_figures(number, name)
    base = None if number is None else paper_figures(number, reference)
    versus = variant["versus_reference"]
    size = variant["num_parameters"]
    gain = DASH
    if paper is not None and base is not None and name != reference:
        gain = f"{paper['top1'] - base['top1']:+.1f}"
    ends = ("difference", "low", "high")
    return [
        Text(f"  {variant['title']}"),
        _figure_text(variant["top1"]),
        _figure_text(variant["class_wise"], with_interval=False),
        DASH if size is None else f"{size:,}",
        DASH if versus is None else points_text(*(versus[end] for end in ends)),
        DASH if versus is None else p_text(versus["p_value_holm"]),
        DASH if paper is None else f"{paper['top1']:.1f} / {paper['class_wise']:.1f}",
        gain,
    ]


def _figure_text(figure: Mapping[str, float | None] | None, *, with_interval: bool = True) -> str:
    """Such as "41.2 (39.8-42.6)"."""
    if figure is None or figure["mean"] is None:
        return DASH
    text = f"{100 * figure['mean']:.1f}"
    if not with_interval or figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def p_text(p_value: float | None, dash: str = DASH) -> str:
    """Three digits, "<0.001", or a dash where there is none."""
    if p_value is None:
        return dash
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def tell_choice(chosen_by: str, split: str) -> str:
    """By which clips the searched settings were chosen, in words."""
    if chosen_by == of_split(split):
        return (
            f"Chosen on {split}: each figure is the best of several trainings on the clips that it "
            "is of, as in V-JEPA 2's protocol, and so too high."
        )
    return f"Settings chosen by {chosen_by}."


def of_split(split: str) -> str:
    """How results.json calls a choice by the clips that are reported on."""
    return f"the {split} split itself"


def _caption(results: Mapping[str, Any]) -> str:
    failed = [line for v in results["variants"].values() for line in v["failures"]]
    clips = f"{results['num_clips']:,} clips"
    over = "seeds"
    drawn = "clips"
    if folds := results.get("folds"):
        clips += f" of {folds['num_groups']:,} groups, each answered by the fold that held it out"
        over = "folds (corrected for training clips that they share)"
        drawn = "groups of clips"
    text = (
        f"{clips}. Differences in points, paired t over {over}; p by Holm "
        f"over all rows; intervals over {drawn} are in results.json. The paper's columns: top-1 / "
        "class-wise and its difference, Diving48 with TPN trained end to end: other data and scale."
    )
    if chosen_by := results.get("chosen_by"):
        text = f"{tell_choice(chosen_by, results['split'])} {text}"
    return text + (f" Diverged: {'; '.join(failed)}" if failed else "")
