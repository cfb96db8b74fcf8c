"""What figures are made of: the answers of each head, and out of how many clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsts_pipeline.metrics.predictions import Predictions


@dataclass(frozen=True)
class HeadResult:
    """One head's answers and what the tables say about it.

    Args:
        title: name for people, such as "DSTS head (N = 10, L = 3)".
        predictions: its answers on the split.
        num_parameters: of the head alone, without the backbone.
        num_neurons: N; needed where `predictions.neurons` is given.
        temporal_share: per layer and neuron, the share of channels whose gate is open to the
            temporal operator, `[L][N]`; None where there are no gates.
        features: pooled maps of each clip's first view `[n, C]`, in the predictions' order; None
            leaves out how similar the clips of a neuron are.
        without_time: class probabilities `[n, K]` on the same maps with their order in time taken
            away; None leaves out which classes need time.
    """

    title: str
    predictions: Predictions
    num_parameters: int
    num_neurons: int | None = None
    temporal_share: Sequence[Sequence[float]] | None = None
    features: np.ndarray | None = None
    without_time: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, width in (("features", None), ("without_time", self.predictions.num_classes)):
            array = getattr(self, name)
            if array is None:
                continue
            if len(array) != len(self.predictions) or width not in (None, array.shape[1]):
                raise ValueError(f"{name} {array.shape} do not fit {self.predictions}")


@dataclass(frozen=True)
class Denominators:
    """Out of how many: `evaluated` clips have predictions, `failed` could not be decoded or
    extracted (in any view), `missing` are annotated but had no usable file. The three are
    disjoint, and count clips, however many views a clip has."""

    evaluated: int
    failed: int = 0
    missing: int = 0

    @property
    def annotated(self) -> int:
        """All clips that the annotations name for the split."""
        return self.evaluated + self.failed + self.missing
