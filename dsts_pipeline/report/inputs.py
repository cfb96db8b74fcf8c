"""What a report is made of, checked before a line of it is drawn.

Enters: the content of metrics.json and history.json, predictions, class names, failures, and what
each stage noted of its making (`base.provenance.collect_provenance`). Leaves: `ReportInputs`, which
the other files of this folder only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.metrics.accuracy import check_attributes, confusion_matrix
from dsts_pipeline.metrics.predictions import Predictions
from dsts_pipeline.metrics.routing import class_by_neuron
from dsts_pipeline.metrics.summary import ordered_heads


@dataclass(frozen=True)
class Failure:
    """A clip that has no figure: where in the pipeline it was lost and why."""

    clip_id: str
    split: str
    stage: str
    reason: str


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that the page shows.

    Args:
        metrics: content of metrics.json.
        predictions: per head of `metrics`, its answers on the split.
        histories: per head, the list under "epochs" in history.json; empty for heads that were
            not trained.
        class_names: K names.
        attribute_names, attributes: as in the clip index; empty if the classes have none.
        failures: clips that could not be used, of all splits.
        origins: provenance of earlier parts by name, such as {"features": ..., "heads": ...};
            that of the evaluation is in `metrics`.
        dataset: its name, see `name_dataset`.
        num_clips: of all splits, by split; empty where the page does not say.
        adapted: what the training changed in its settings for few clips; empty: nothing.
        routing: content of evaluation/routing.json; None where it is missing.
        ablation: content of ablation/results.json; None where `ablate` has not run.

    Raises:
        DataError: A head lacks predictions, or class names and predictions disagree.
    """

    metrics: Mapping[str, Any]
    predictions: Mapping[str, Predictions]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    class_names: Sequence[str]
    attribute_names: Sequence[str] = ()
    attributes: Sequence[Sequence[str]] = ()
    failures: Sequence[Failure] = ()
    origins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dataset: str = ""
    num_clips: Mapping[str, int] = field(default_factory=dict)
    adapted: str = ""
    ablation: Mapping[str, Any] | None = None
    routing: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if "intervals" in self.left_out:
            object.__setattr__(self, "metrics", without_intervals(self.metrics))
        check_attributes(self.attribute_names, self.attributes, len(self.class_names))
        if not self.metrics.get("heads"):
            raise DataError("metrics hold no heads; run `python cli.py evaluate`")
        for name in self.metrics["heads"]:
            if name not in self.predictions:
                raise DataError(
                    f"head {name!r} is in the metrics but has no predictions; "
                    "run `python cli.py evaluate` again"
                )
            found = self.predictions[name].num_classes
            expected = len(self.class_names)
            if found != expected:
                raise DataError(
                    f"predictions of head {name!r} are for {found} classes, the clip index names "
                    f"{expected}; run `python cli.py evaluate` again"
                )

    @property
    def heads(self) -> list[tuple[str, Mapping[str, Any]]]:
        """(name, figures) in the order of the tables."""
        return ordered_heads(self.metrics)

    @property
    def main_head(self) -> str:
        """The head that the page is about: the last one that routes, else the last one."""
        names = [name for name, _ in self.heads]
        routed = [name for name, head in self.heads if head.get("routing")]
        return (routed or names)[-1]

    @property
    def main(self) -> Mapping[str, Any]:
        """The main head's part of metrics.json."""
        found: Mapping[str, Any] = self.metrics["heads"][self.main_head]
        return found

    @property
    def answers(self) -> Predictions:
        """The main head's answers."""
        return self.predictions[self.main_head]

    def chooses(self, name: str) -> bool:
        """Whether a head sends clips to one of several neurons; a lone neuron serves all."""
        return int((self.metrics["heads"][name].get("routing") or {}).get("num_neurons", 0)) > 1

    @property
    def num_neurons(self) -> int:
        """Neurons per layer that the main head chooses among; 0 where there is no choice."""
        return self.main["routing"]["num_neurons"] if self.chooses(self.main_head) else 0

    @property
    def routing_of_main(self) -> Mapping[str, Any] | None:
        """What routing.json says of the main head."""
        found: Mapping[str, Any] | None = (self.routing or {}).get("heads", {}).get(self.main_head)
        return found

    @property
    def has_gates(self) -> bool:
        """Whether the main head's channels are dealt by gates that it learns, and not by halves."""
        layers = [
            layer
            for row in self.histories.get(self.main_head) or ()
            for layer in row.get("layers") or ()
        ]
        if layers:
            return any(layer.get("saturated_share") is not None for layer in layers)
        routed = (self.main.get("routing") or {}).get("layers", ())
        return any(layer.get("temporal_share") is not None for layer in routed)

    @property
    def held_out(self) -> bool:
        """Whether any head has curves of clips held out from training."""
        rows = (row for epochs in self.histories.values() for row in epochs)
        return any(row.get("heldout_loss") is not None for row in rows)

    @property
    def baseline(self) -> str | None:
        """The head that others are compared with."""
        return self.metrics.get("baseline")

    @property
    def opponent(self) -> str | None:
        """The head that the main head is drawn against: the baseline, else the first other one."""
        if self.baseline not in (None, self.main_head):
            return self.baseline
        return next((name for name, _ in self.heads if name != self.main_head), None)

    @property
    def opponent_title(self) -> str:
        """Its title; empty without one."""
        return "" if self.opponent is None else str(self.metrics["heads"][self.opponent]["title"])

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why a table that other runs have is missing, a sentence by the table's name."""
        found: Mapping[str, str] = self.metrics.get("left_out") or {}
        return {name: f"{sentence.rstrip('.')}." for name, sentence in found.items()}

    @property
    def has_top5(self) -> bool:
        """Whether "among the first five" says anything: of five classes it is always so."""
        known = all("top5" in head for _, head in self.heads)
        return known and len(self.class_names) > 5 and "top5" not in self.left_out

    def confusion(self, name: str) -> np.ndarray:
        """Clips of a head by true and predicted class, `[K, K]`."""
        answers = self.predictions[name]
        return confusion_matrix(answers.labels, answers.predicted, answers.num_classes)

    def neuron_counts(self) -> np.ndarray | None:
        """The main head's views by layer, class and neuron, `[L, K, N]`; None without a choice."""
        if not self.num_neurons or self.answers.neurons is None:
            return None
        num_classes = self.answers.num_classes
        return class_by_neuron(*self.answers.routes(), num_classes, self.num_neurons)


def without_intervals(value: Any) -> Any:
    """Figures of metrics.json less all bounds but those of calibration."""
    if isinstance(value, list):
        return [without_intervals(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    kept = {
        key: inner if key == "calibration" else without_intervals(inner)
        for key, inner in value.items()
    }
    return {key: kept[key] for key in kept if not _is_bound(key, kept)}


def _is_bound(key: str, figures: Mapping[str, Any]) -> bool:
    name, _, end = key.rpartition("_")
    return end in ("low", "high") and name in figures


# ---- the data set: its name, and whether the paper has it ---------------------------------------

_PRESETS = ("csv", "folder", "mmaction")  # names of kinds of data set, not of one
PAPERS_DATASETS = ("diving48", "ssv2")


def name_dataset(name: str, root: str) -> str:
    """`name`, or that of the root folder where nobody changed the preset's word."""
    return Path(root).resolve().name or name if name in _PRESETS else name


# ---- provenance: what each stage noted, joined into one list without repetition -----------------

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Origins:
    """Facts such as commit and machine, versions of packages, settings."""

    facts: Pairs
    versions: Pairs
    settings: Pairs

    @cached_property
    def changed(self) -> list[tuple[str, str, str]]:
        """Settings with another value than their default: name, value, default."""
        usual = dict(flatten(Settings().model_dump()))
        return [
            (key, value, usual[key])
            for key, value in self.settings
            if key in usual and usual[key] != value
        ]


def join_origins(parts: Mapping[str, Mapping[str, Any]]) -> Origins:
    """One list for all parts; where parts differ in a value, each value names its parts."""
    groups = ("versions", "settings")
    facts = {
        part: {key: value for key, value in noted.items() if key not in groups}
        for part, noted in parts.items()
    }
    versions, settings = (
        {part: noted.get(group, {}) for part, noted in parts.items()} for group in groups
    )
    return Origins(_join(facts), _join(versions), _join(settings))


def _join(parts: Mapping[str, Mapping[str, Any]]) -> Pairs:
    values: dict[str, dict[str, list[str]]] = {}
    for part, noted in parts.items():
        for key, text in flatten(noted):
            values.setdefault(key, {}).setdefault(text, []).append(part)
    return [(key, _differing(texts)) for key, texts in values.items()]


def _differing(texts: Mapping[str, list[str]]) -> str:
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{text} ({', '.join(parts)})" for text, parts in texts.items())


def flatten(value: Any, prefix: str = "") -> Pairs:
    """Nested dictionaries as (dotted name, text) pairs; lists stay on one line."""
    if isinstance(value, Mapping):
        pairs = (flatten(inner, f"{prefix}.{key}".lstrip(".")) for key, inner in value.items())
        return [pair for group in pairs for pair in group]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [(prefix, ", ".join(str(item) for item in value))]
    if value is None or isinstance(value, bool):
        return [(prefix, "none" if value is None else "yes" if value else "no")]
    return [(prefix, str(value))]
