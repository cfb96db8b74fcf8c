"""Several views of a clip, one answer: enters a row per view, leaves a row per clip.

Choice: the mean of the views' class probabilities, not of their logits, as is usual with test
crops: a view that is sure then weighs no more than its probability says. Everything that is
counted afterwards counts clips. What a head's neurons did is counted view by view instead: each
view is routed by itself, and a mean of routes is no route.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.predictions import Predictions


def average_views(
    clip_ids: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    neurons: np.ndarray | None = None,
) -> Predictions:
    """One row per clip, in the order of the clips' first views.

    `p(clip) = 1 / V sum_v p(view v)` over the V views that there are.

    Args:
        clip_ids: m names; the views of a clip share one.
        labels: int `[m]`.
        probabilities: `[m, K]`, rows summing to one.
        neurons: chosen neuron per layer, int `[m, L]`, or None.

    Raises:
        DataError: Views of one clip have different labels, or see `Predictions`.
    """
    names, labels = np.asarray(clip_ids, dtype=np.str_), np.asarray(labels)
    _, first, clip_of_row, counts = np.unique(
        names, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(names):
        return Predictions(tuple(clip_ids), labels, probabilities, neurons)
    appearance = np.argsort(first)
    clip_of_row = np.argsort(appearance)[clip_of_row]
    first, counts = first[appearance], counts[appearance]
    if (odd := labels != labels[first][clip_of_row]).any():
        clip = str(names[int(odd.argmax())])
        raise DataError(f"clip {clip!r}: its views have different labels; extract again")
    sums = np.zeros((len(first), np.shape(probabilities)[1]), dtype=np.float64)
    np.add.at(sums, clip_of_row, probabilities)
    return Predictions(
        clip_ids=tuple(names[first].tolist()),
        labels=labels[first],
        probabilities=sums / counts[:, None],
        neurons=None if neurons is None else np.asarray(neurons)[first],
        view_clips=None if neurons is None else clip_of_row,
        view_neurons=neurons,
    )


@dataclass(frozen=True)
class ViewCounts:
    """How many views the clips of a split have.

    Args:
        per_clip: views planned for a clip (the most, should they differ).
        num_clips: clips of which at least one view exists.
        incomplete: `(clip id, views that exist, views planned)` of clips that lack some.
        failed: ids of clips that have no view at all.
    """

    per_clip: int
    num_clips: int
    incomplete: tuple[tuple[str, int, int], ...]
    failed: tuple[str, ...]

    def describe(self) -> dict[str, Any] | None:
        """What metrics.json says under "views"; None where every clip has one."""
        if self.per_clip <= 1:
            return None
        lacking = [
            {"id": name, "stored": stored, "planned": planned}
            for name, stored, planned in self.incomplete
        ]
        return {"per_clip": self.per_clip, "averaged": "probabilities", "incomplete": lacking}


def count_views(clip_ids: Sequence[str], failures: Sequence[Mapping[str, Any]]) -> ViewCounts:
    """Count the views of a split's clips.

    Args:
        clip_ids: the clip of each view that exists.
        failures: an entry with the clip's "id" for each view that failed.
    """
    stored = Counter(str(name) for name in clip_ids)
    lost = Counter(str(failure["id"]) for failure in failures)
    planned = stored + lost
    return ViewCounts(
        per_clip=max(planned.values(), default=0),
        num_clips=len(stored),
        incomplete=tuple(
            (name, stored[name], planned[name]) for name in sorted(lost) if name in stored
        ),
        failed=tuple(name for name in sorted(lost) if name not in stored),
    )
