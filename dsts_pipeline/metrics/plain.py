"""The plain figures of one set of answers, without intervals: for comparisons on the way."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsts_pipeline.metrics.accuracy import class_wise_accuracy, top_k_hits


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
