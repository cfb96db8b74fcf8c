"""Two confusion matrices apart: which cells lost clips and which gained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsts_pipeline.report.plots.matrices import label_width, matrix_frame, strength
from dsts_pipeline.report.plots.svg import Drawing, rectangle


def difference_drawing(
    change: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Drawing:
    """Blue where the change is for the better: more on the diagonal, fewer beside it; else red.

    Args:
        change: clips gained per cell, `[K, K]`, rows true, columns predicted.
    """
    num_classes = len(class_names)
    cell = float(np.clip(720 / num_classes, 4.0, 30.0))
    left, top = label_width(class_names, cell), 24.0
    parts = matrix_frame(class_names, rules, left, top, cell)
    most = max(1, int(np.abs(change).max()))
    for i, j in np.argwhere(change != 0):
        count, better = int(change[i, j]), (change[i, j] > 0) == (i == j)
        what = "right" if i == j else f"taken for {class_names[j]}"
        tip = f"{class_names[i]}: {abs(count)} {'more' if count > 0 else 'fewer'} {what}"
        kind, opacity = "right" if better else "wrong", strength(abs(count) / most)
        box = (left + j * cell, top + i * cell, cell - 0.6, cell - 0.6)
        parts.append(rectangle(*box, f"cell {kind}", fill_opacity=opacity, data_tip=tip))
    right = int(np.trace(change))
    label = (
        f"Change of the confusion matrix of {num_classes} classes: {right:+d} clips on the "
        "diagonal. The table of classes below lists the largest changes."
    )
    side = cell * num_classes
    return Drawing(left + side + 2, top + side + 2, label, tuple(parts))
