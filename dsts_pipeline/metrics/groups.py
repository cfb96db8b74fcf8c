"""Accuracy by group of clips: per class, and per value of each attribute, with counts.

Enters: hits (bool `[n]`) and labels `[n]`. Leaves: columns of one entry per class or value, plain
lists for JSON. Groups without clips have None, not 0; intervals are Wilson's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dsts_pipeline.metrics.intervals import wilson_bounds


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
