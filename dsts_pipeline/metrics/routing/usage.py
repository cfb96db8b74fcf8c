"""Who does the work: how a routed head spreads clips over its neurons.

Enters: chosen neurons int `[n, L]`, labels `[n]`, number of neurons N.
Leaves: use per neuron, entropy, dead neurons, class-by-neuron counts.
"""

from __future__ import annotations

import numpy as np


def neuron_usage(neurons: np.ndarray, num_neurons: int) -> np.ndarray:
    """Share of clips that each neuron of each layer was chosen for: float64 `[L, N]`.

    Raises:
        ValueError: A choice is not in 0..N-1.
    """
    if neurons.size and (neurons.min() < 0 or neurons.max() >= num_neurons):
        raise ValueError(
            f"chosen neurons span {neurons.min()}..{neurons.max()}, expected 0..{num_neurons - 1}"
        )
    columns = [np.bincount(column, minlength=num_neurons) for column in neurons.T]
    return np.reshape(columns, (neurons.shape[1], num_neurons)) / max(len(neurons), 1)


def usage_entropy(usage: np.ndarray) -> np.ndarray:
    """-sum p ln p over the last axis, in nats: 0 for one neuron, ln N for even use."""
    logs = np.log(usage, out=np.zeros_like(usage, dtype=np.float64), where=usage > 0)
    return -(usage * logs).sum(axis=-1) + 0.0  # + 0.0: no negative zero


def dead_neurons(usage: np.ndarray) -> np.ndarray:
    """Number of neurons that no clip chose, int64 over the leading axes."""
    return (usage == 0).sum(axis=-1)


def class_by_neuron(
    neurons: np.ndarray, labels: np.ndarray, num_classes: int, num_neurons: int
) -> np.ndarray:
    """Number of clips of each class that chose each neuron: int64 `[L, K, N]`."""
    size = num_classes * num_neurons
    layers = [
        np.bincount(labels * num_neurons + column, minlength=size).reshape(num_classes, num_neurons)
        for column in neurons.T.astype(np.int64)
    ]
    return np.reshape(layers, (neurons.shape[1], num_classes, num_neurons))
