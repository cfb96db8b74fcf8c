"""Accuracies and confusions, per clip, averaged, and by group of clips.

Enters: class probabilities `[n, K]` and labels `[n]`, or hits (bool `[n]`, "was right").
Leaves: hits per clip, from which averages here and intervals in `intervals.py` are taken; counts
`[K, K]`, rows true, columns predicted; columns of one entry per class or value, ready for JSON.
Source: the paper's section 4 reports top-1, top-5 and "class-wise" (mean per-class) accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def plain_figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Figures without intervals, for comparisons on the way.

    Args:
        probabilities: `[n, K]`, rows summing to one, n >= 1.
        labels: int `[n]`.

    Returns:
        Number of "clips", "top1", "top5", "class_wise" accuracy and "loss", mean cross-entropy.
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


# ---- attributes of classes ----------------------------------------------------------------------


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


# ---- which classes are taken for which ----------------------------------------------------------


def count_table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often each pair of numbers `[n]` occurs: int64 of `shape`."""
    flat = rows.astype(np.int64) * shape[1] + columns.astype(np.int64)
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of clips of class i that were taken for class j: int64 `[K, K]`."""
    return count_table(labels, predicted, (num_classes, num_classes))


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


# ---- by group of clips: per class, per value of an attribute ------------------------------------
#
# Groups without clips have None, not 0; intervals are Wilson's.


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
    columns = _shares(hits, labels, num_classes, confidence)
    given = np.bincount(predicted, minlength=num_classes)
    right = np.asarray(columns["right"])
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
    return {"values": values} | _shares(hits, number[labels], len(values), confidence)


def _shares(
    hits: np.ndarray, groups: np.ndarray, num_groups: int, confidence: float
) -> dict[str, list[Any]]:
    clips = np.bincount(groups, minlength=num_groups)
    right = np.bincount(groups, weights=hits, minlength=num_groups).astype(np.int64)
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
