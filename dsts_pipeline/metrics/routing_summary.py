"""One dictionary on what a head's neurons do: the content of routing.json.

Enters: what heads answered and chose, pooled features, the classes. Leaves: plain numbers for JSON.
Counts (usage, class by neuron, changes between views) count every view that was routed; what rests
on independent clips (information, similarity, gates, pairs) takes each clip's first view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsts_pipeline.metrics.intervals import Bootstrap
from dsts_pipeline.metrics.predictions import align
from dsts_pipeline.metrics.routing import (
    central_clips,
    class_by_neuron,
    class_need,
    clip_need,
    dead_neurons,
    describe_gates,
    describe_information,
    describe_pairs,
    describe_similarity,
    describe_view_changes,
    neuron_usage,
    number_routes,
    usage_entropy,
)

if TYPE_CHECKING:
    from dsts_pipeline.metrics.predictions import HeadResult


NUM_CENTRAL_CLIPS = 8


@dataclass(frozen=True)
class RoutingOptions:
    """How routing is analysed.

    Args:
        num_permutations: routes dealt anew, for nulls and p-values; at least 1.
        temporal_need: how `without_time` of the heads was made, for the record; "none" if not.
        num_pairs: hard pairs that are listed each way.
        seed: of permutations.
    """

    num_permutations: int = 200
    temporal_need: str = "none"
    num_pairs: int = 20
    seed: int = 0


def assemble_routing(
    heads: Mapping[str, HeadResult],
    *,
    class_names: Sequence[str],
    bootstrap: Bootstrap,
    options: RoutingOptions,
    attribute_names: Sequence[str] = (),
    attributes: Sequence[Sequence[str]] = (),
    baselines: Sequence[str] = ("baseline", "linear_probe"),
) -> dict[str, Any]:
    """The content of routing.json; "heads" is empty where none routes.

    Args:
        heads: as in `assemble_metrics`.
        baselines: the first of these that was evaluated is what "hard_pairs" compares with.
    """
    groups = {"class": np.arange(len(class_names))}
    for position, name in enumerate(attribute_names if attributes else ()):
        values = [row[position] for row in attributes]
        groups[name] = np.unique(values, return_inverse=True)[1].reshape(-1)
    base = next((name for name in baselines if name in heads), None)
    return {
        "classes": list(class_names),
        "num_permutations": options.num_permutations,
        "temporal_need": options.temporal_need,
        "baseline": base,
        "heads": {
            name: _head(head, groups, options)
            | {"hard_pairs": _pairs(head, heads, base, class_names, bootstrap, options.num_pairs)}
            for name, head in heads.items()
            if head.predictions.neurons is not None and name != base
        },
    }


def _head(
    head: HeadResult, groups: Mapping[str, np.ndarray], options: RoutingOptions
) -> dict[str, Any]:
    answers = head.predictions
    assert answers.neurons is not None and head.num_neurons is not None
    number = number_routes(answers.routes()[0])
    labels, without = answers.labels, head.without_time
    need = None if without is None else clip_need(answers.probabilities, without, labels)
    return {
        "title": head.title,
        "num_neurons": head.num_neurons,
        "clips": len(answers),
        "views": len(answers.routes()[0]),
        "layers": [
            _layer(head, layer, groups, need, options) for layer in range(answers.neurons.shape[1])
        ],
        "routes": {
            "possible": head.num_neurons ** answers.neurons.shape[1],
            "distinct": len(number[0]),
            "view_changes": _view_changes(head, number[1], len(number[0])),
        },
        "class_need": (
            None if without is None else class_need(answers.probabilities, without, labels)
        ),
    }


def _layer(
    head: HeadResult,
    layer: int,
    groups: Mapping[str, np.ndarray],
    need: np.ndarray | None,
    options: RoutingOptions,
) -> dict[str, Any]:
    answers, size = head.predictions, head.num_neurons
    assert answers.neurons is not None and size is not None
    chosen = answers.neurons[:, layer].astype(np.int64)
    routes, labels = answers.routes()
    routes = routes[:, layer : layer + 1]
    usage = neuron_usage(routes, size)[0]
    draws = {"num_permutations": options.num_permutations, "seed": options.seed}
    shares = None if head.temporal_share is None else head.temporal_share[layer]
    found: dict[str, Any] = {
        "usage": usage.tolist(),
        "entropy": float(usage_entropy(usage)),
        "dead": int(dead_neurons(usage)),
        "class_by_neuron": class_by_neuron(routes, labels, answers.num_classes, size)[0].tolist(),
        "information": {
            name: describe_information(
                group[answers.labels], chosen, (int(group.max()) + 1, size), **draws
            )
            for name, group in groups.items()
        },
        "gates": (
            None
            if shares is None
            else describe_gates(shares, chosen, answers.labels, need, **draws)
        ),
        "view_changes": _view_changes(head, answers.routes()[0][:, layer], size),
        "similarity": None,
        "central_clips": None,
    }
    if shares is not None:
        found["gates"] = describe_gates(shares, chosen, answers.labels, need, **draws)
    if head.features is not None:
        found["similarity"] = describe_similarity(head.features, chosen, size, **draws)
        found["central_clips"] = [
            [answers.clip_ids[row] for row in rows]
            for rows in central_clips(head.features, chosen, size, NUM_CENTRAL_CLIPS)
        ]
    return found


def _view_changes(head: HeadResult, chosen: np.ndarray, size: int) -> dict[str, Any] | None:
    clips = head.predictions.view_clips
    return None if clips is None else describe_view_changes(chosen.astype(np.int64), clips, size)


def _pairs(
    head: HeadResult,
    heads: Mapping[str, HeadResult],
    base: str | None,
    class_names: Sequence[str],
    bootstrap: Bootstrap,
    limit: int,
) -> dict[str, Any] | None:
    if base is None:
        return None
    answers = head.predictions
    other = align(answers, heads[base].predictions)
    return describe_pairs(
        answers.labels, answers.predicted, other.predicted, class_names, bootstrap, limit
    )
