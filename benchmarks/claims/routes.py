"""What the neurons of a trained head serve: do they specialise, do gates go temporal with need?

Enters: a run's folder and the maps of the split that is counted. Leaves: per layer a few figures,
and what the head loses where the order in time is taken away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.metrics.accuracy import count_table
from dsts_pipeline.metrics.routing import (
    adjusted_mutual_information,
    clip_need,
    dead_neurons,
    describe_gates,
)
from dsts_pipeline.metrics.scoring import score_head

NUM_PERMUTATIONS = 200
Describe = Callable[[Path], "dict[str, Any] | None"]


def route_reader(folder: Path, split: str) -> Describe:
    """Describes runs of the regime in `folder` by its maps of `split`."""
    store = open_store(folder / read_json(folder / "outputs" / "features.json")["store"])
    feed = FeatureFeed(store, store.rows_of_split(split))
    return lambda run: describe_routes(run, feed)


def describe_routes(run: Path, feed: FeatureFeed) -> dict[str, Any] | None:
    """Figures of the head in `run`; None where nothing is routed.

    Returns:
        "accuracy_without_time", and per layer under "layers": "adjusted", the mutual information
        of neuron and class adjusted for chance (0 by chance, 1 one to one); "dead" neurons;
        "temporal_share", the mean share of channels that go to temporal operators; "need", the rank
        correlation over neurons of that share with how much their classes need the order in
        time, None where it is not defined.
    """
    found = score_head(run, feed, EvaluateSettings())
    answers, without = found.predictions, found.without_time
    if answers.neurons is None or without is None or found.num_neurons is None:
        return None
    need = clip_need(answers.probabilities, without, answers.labels)
    shape = (answers.probabilities.shape[1], found.num_neurons)
    layers = []
    for position in range(answers.neurons.shape[1]):
        neurons = answers.neurons[:, position].astype(np.int64)
        counts = count_table(answers.labels, neurons, shape)
        layer: dict[str, Any] = {
            "adjusted": adjusted_mutual_information(counts),
            "dead": int(dead_neurons(counts.sum(axis=0))),
            "temporal_share": None,
            "need": None,
        }
        if found.temporal_share is not None:
            shares = found.temporal_share[position]
            gates = describe_gates(
                shares,
                neurons,
                answers.labels,
                need,
                num_permutations=NUM_PERMUTATIONS,
                seed=0,
            )
            layer |= {
                "temporal_share": float(np.mean(shares)),
                "need": gates["rank_correlation"],
            }
        layers.append(layer)
    return {
        "accuracy_without_time": float((without.argmax(axis=1) == answers.labels).mean()),
        "layers": layers,
    }
