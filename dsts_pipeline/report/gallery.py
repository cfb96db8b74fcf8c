"""Neuron gallery: previews of the clips that each neuron was chosen for.

Enters: predictions with routing, and the page's previews.
Leaves: per layer and neuron a few previews.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsts_pipeline.metrics.predictions import Predictions
from dsts_pipeline.report.previews import Preview, Previews

Gallery = tuple[tuple[tuple[Preview, ...], ...], ...]  # [layer][neuron] -> previews


def build_gallery(
    predictions: Predictions, num_neurons: int, previews: Previews, *, num_clips: int = 4
) -> Gallery:
    """Previews of `num_clips` clips per neuron and layer.

    A clip that can't be read is shown with the reason, not left out.
    """
    assert predictions.neurons is not None
    return tuple(
        tuple(
            tuple(
                previews.of(row) for row in typical_rows(predictions, column == neuron, num_clips)
            )
            for neuron in range(num_neurons)
        )
        for column in predictions.neurons.T
    )


def typical_rows(predictions: Predictions, chosen: np.ndarray, limit: int) -> Sequence[int]:
    """Rows of the surest clip of each class that a neuron serves, its most frequent class first.

    When the classes are fewer than `limit`, their second surest clips follow, and so on.
    """
    rows = np.flatnonzero(chosen)
    sureness = predictions.probabilities[rows].max(axis=1)
    order = rows[np.argsort(-sureness, kind="stable")]
    labels = predictions.labels[order]
    counts = np.bincount(labels, minlength=predictions.num_classes)
    turn = np.zeros(len(order), np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(counts[label])
    return [int(row) for row in order[np.lexsort((labels, -counts[labels], turn))][:limit]]
