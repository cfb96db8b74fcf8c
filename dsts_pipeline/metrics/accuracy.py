"""Accuracies, per clip and averaged: top-k, class-wise, per attribute.

Enters: class probabilities `[n, K]` and labels `[n]`, or hits (bool `[n]`, "was right").
Leaves: hits per clip, from which averages here and intervals in `intervals.py` are taken.
Source: the paper's section 4 reports top-1, top-5 and "class-wise" (mean per-class) accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsts_pipeline.base.errors import DataError


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
