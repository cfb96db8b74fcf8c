"""How often the views of one clip go to different neurons.

Enters: neurons of each view and the clip of each view. Leaves: shares of clips and of pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def describe_view_changes(
    view_neurons: np.ndarray, view_clips: np.ndarray, num_neurons: int
) -> dict[str, Any] | None:
    """What routing.json says of one layer (or of whole routes) under "view_changes".

    Args:
        view_neurons: chosen neuron (or number of the whole route) of each view, int `[m]`.
        view_clips: clip of each view, int `[m]`.
        num_neurons: how many neurons (or routes) there are.

    Returns:
        None where no clip has several views. Else "clips" that have several; "changed": the share
        of them whose views do not all agree; "pairs_apart": the share of the pairs of views of
        one clip that differ; "pairs_apart_null": what it would be if views were routed without
        regard to their clip, `1 - sum_i p_i^2` with p_i the use of neuron i.
    """
    num_clips = int(view_clips.max()) + 1
    counts = np.zeros((num_clips, num_neurons))
    np.add.at(counts, (view_clips, view_neurons), 1.0)
    sizes = counts.sum(axis=1)
    several = sizes > 1
    if not several.any():
        return None
    counts, sizes = counts[several], sizes[several]
    pairs = sizes * (sizes - 1)
    same = (counts * (counts - 1)).sum(axis=1)
    use = counts.sum(axis=0) / counts.sum()
    return {
        "clips": int(several.sum()),
        "changed": float((counts.max(axis=1) < sizes).mean()),
        "pairs_apart": float(1 - same.sum() / pairs.sum()),
        "pairs_apart_null": float(1 - (use**2).sum()),
    }


def number_routes(neurons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole routes through all layers: `(distinct routes [R, L], route of each row [m])`."""
    routes, number = np.unique(neurons, axis=0, return_inverse=True)
    return routes, number.reshape(-1)
