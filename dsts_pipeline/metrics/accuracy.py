"""Accuracies, per clip and averaged: top-k, class-wise, per attribute.

Enters: class probabilities `[n, K]` and labels `[n]`, or hits (bool `[n]`, "was right").
Leaves: hits per clip, from which averages here and intervals in `intervals.py` are taken.
Source: the paper's section 4 reports top-1, top-5 and "class-wise" (mean per-class) accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.intervals import wilson_bounds


def label_ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of the true class among the K, 0 for the most probable: int64 `[n]`.

    Choice: among equal probabilities the lower class index comes first, as argmax has it, so
    that a head which gives all classes the same probability scores chance, not 100 %.
    (torchmetrics and torch.topk leave the order of ties open; without ties all agree.)
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    before = np.arange(probabilities.shape[1])[None, :] < labels[:, None]
    return ((probabilities > own) | ((probabilities == own) & before)).sum(axis=1)


def top_k_hits(probabilities: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the true class is among the k most probable: bool `[n]`; k > K counts all."""
    if k < 1:
        raise ValueError(f"k = {k}, expected at least 1")
    return label_ranks(probabilities, labels) < k


def per_class_accuracy(hits: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of hits among the clips of each class, float64 `[K]`; NaN where a class has none."""
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=hits, minlength=num_classes)
    return np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)


def class_wise_accuracy(hits: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean of the per-class accuracies over the classes that have clips.

    torchmetrics' macro average is not used: it also counts, as zero, a class that has no clips
    but was predicted once, which lowers the figure for a class that was never asked for.
    """
    return float(np.nanmean(per_class_accuracy(hits, labels, num_classes)))


def check_attributes(
    attribute_names: Sequence[str], attributes: Sequence[Sequence[str]], num_classes: int
) -> None:
    """Raise DataError unless `attributes` has one value per class and attribute, or is empty."""
    if not attributes:
        return
    if len(attributes) != num_classes:
        raise DataError(
            f"attributes are given for {len(attributes)} classes, expected {num_classes}; "
            "list one row per class or none at all"
        )
    for index, values in enumerate(attributes):
        if len(values) != len(attribute_names):
            raise DataError(
                f"class {index} has attributes {list(values)}, expected one value for each of "
                f"{list(attribute_names)}"
            )


def attribute_hits(
    predicted: np.ndarray, labels: np.ndarray, attributes: Sequence[Sequence[str]]
) -> np.ndarray:
    """Whether the predicted class has the true class's value of each attribute: bool `[n, A]`.

    Choice: the attributes of the most probable class, not the sum of the probabilities of all
    classes with a value, so that the figure says what the answer that was given gets right.
    """
    table = np.asarray(attributes, dtype=np.str_)
    return table[predicted] == table[labels]


# ---- Which classes are taken for which: confusion matrix and the pairs that are hardest. --------
#
# Enters: true and predicted classes, int `[n]`. Leaves: counts `[K, K]`, rows true, columns
# predicted, and a ranked list of unordered class pairs.


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes and how often clips of either were taken for the other.

    `share` is that number over all clips of the two classes, 0..1.
    """

    first: int
    second: int
    first_as_second: int
    second_as_first: int
    share: float

    @property
    def total(self) -> int:
        """Confusions in both directions."""
        return self.first_as_second + self.second_as_first


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of clips of class i that were taken for class j: int64 `[K, K]`."""
    import torch  # here, not above: seconds that a page which shows no confusion need not wait
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    counts = multiclass_confusion_matrix(
        torch.from_numpy(np.asarray(predicted, np.int64)),
        torch.from_numpy(np.asarray(labels, np.int64)),
        num_classes=num_classes,
    )
    return counts.numpy()


def hardest_pairs(confusion: np.ndarray, limit: int) -> list[ConfusedPair]:
    """The pairs with the most confusions in both directions, most first, without zeros.

    Ties are broken by the share of the pair's clips, then by class index.
    """
    both = confusion + confusion.T
    sizes = confusion.sum(axis=1)
    pairs = [
        ConfusedPair(
            first=int(i),
            second=int(j),
            first_as_second=int(confusion[i, j]),
            second_as_first=int(confusion[j, i]),
            share=float(both[i, j] / max(sizes[i] + sizes[j], 1)),
        )
        for i, j in np.argwhere(np.triu(both, k=1) > 0)
    ]
    pairs.sort(key=lambda pair: (-pair.total, -pair.share, pair.first, pair.second))
    return pairs[:limit]


# ---- Accuracy by group of clips: per class, and per value of each attribute, with counts. -------
#
# Enters: hits (bool `[n]`) and labels `[n]`. Leaves: columns of one entry per class or value, plain
# lists for JSON. Groups without clips have None, not 0; intervals are Wilson's.


def class_columns(
    hits: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    confidence: float,
) -> dict[str, list[Any]]:
    """Accuracy of each class, K entries a column.

    Returns:
        "clips" of the class, "right" ones, "predicted" (clips of any class that were given this
        one), "accuracy" (= recall) with "low" and "high", "precision" (right / predicted).
    """
    clips, right = _counts(hits, labels, num_classes)
    given = np.bincount(predicted, minlength=num_classes)
    columns = _shares(right, clips, confidence)
    precision = np.divide(right, given, out=np.full(num_classes, np.nan), where=given > 0)
    return columns | {"predicted": given.tolist(), "precision": _or_none(precision, given > 0)}


def value_columns(
    hits: np.ndarray, labels: np.ndarray, values_of_classes: Sequence[str], confidence: float
) -> dict[str, list[Any]]:
    """How often an attribute was right, by its true value; values in the classes' order.

    Args:
        hits: whether the predicted class has the true class's value, bool `[n]`.
        values_of_classes: the attribute's value of each class, K names.

    Returns:
        Columns "values", "clips", "right", "accuracy", "low", "high".
    """
    values = list(dict.fromkeys(values_of_classes))
    number = np.asarray([values.index(value) for value in values_of_classes])
    clips, right = _counts(hits, number[labels], len(values))
    return {"values": values} | _shares(right, clips, confidence)


def _counts(hits: np.ndarray, groups: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    right = np.bincount(groups, weights=hits, minlength=size).astype(np.int64)
    return np.bincount(groups, minlength=size), right


def _shares(right: np.ndarray, clips: np.ndarray, confidence: float) -> dict[str, list[Any]]:
    low, high = wilson_bounds(right, clips, confidence)
    there = clips > 0
    return {
        "clips": clips.tolist(),
        "right": right.tolist(),
        "accuracy": _or_none(right / np.maximum(clips, 1), there),
        "low": _or_none(low, there),
        "high": _or_none(high, there),
    }


def _or_none(values: np.ndarray, there: np.ndarray) -> list[float | None]:
    return [float(v) if t else None for v, t in zip(values, there, strict=True)]


# ---- The plain figures of one set of answers, without intervals: for comparisons on the way. ----


def plain_figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Number of clips, top-1, top-5, class-wise accuracy and mean cross-entropy.

    Args:
        probabilities: `[n, K]`, rows summing to one, n >= 1.
        labels: int `[n]`.
    """
    hits = top_k_hits(probabilities, labels, 1)
    own = probabilities[np.arange(len(labels)), labels].clip(1e-12)
    return {
        "clips": len(labels),
        "top1": float(hits.mean()),
        "top5": float(top_k_hits(probabilities, labels, 5).mean()),
        "class_wise": class_wise_accuracy(hits, labels, probabilities.shape[1]),
        "loss": float(-np.log(own).mean()),
    }


# ---- The few figures that fit one line of a terminal, for `dvc metrics show` and `dvc exp show`.


def headline_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Top-1 and class-wise accuracy by head, and how many clips they rest on.

    Args:
        metrics: what `assemble_metrics` returns.

    Returns:
        {head: {"top1", "class_wise"}, ..., "evaluated", "failed", "missing"}; fractions, 0..1.
    """
    figures: dict[str, Any] = {
        name: {"top1": head["top1"], "class_wise": head["class_wise"]}
        for name, head in metrics["heads"].items()
    }
    return figures | {name: metrics[name] for name in ("evaluated", "failed", "missing")}
