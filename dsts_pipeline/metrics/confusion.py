"""Which classes are taken for which: confusion matrix and the pairs that are hardest.

Enters: true and predicted classes, int `[n]`. Leaves: counts `[K, K]`, rows true, columns
predicted, and a ranked list of unordered class pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
