"""What a layer has learned to decide, as numbers for a log.

Enters: a layer and the neurons that samples chose. Leaves: a JSON dictionary per layer: usage,
its entropy, dead neurons, share of temporal channels per neuron, share of saturated gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.layer import DSTSLayer
from dsts_pipeline.head.routing import SATURATION, decide_gates


def usage_shares(choice: Tensor, num_neurons: int) -> Tensor:
    """Share of samples per neuron `[N]` (float64) of `choice [n]`."""
    counts = torch.bincount(choice.cpu(), minlength=num_neurons).double()
    return counts / counts.sum().clamp(min=1.0)


def usage_entropy(usage: Tensor) -> float:
    """Entropy of `usage [N]` in nats: 0 where one neuron gets all, ln N where use is even."""
    return float(torch.special.entr(usage).sum()) + 0.0


@torch.no_grad()
def temporal_shares(layer: DSTSLayer) -> Tensor | None:
    """Share of channels that each neuron sends to its temporal operator `[N]`, without noise."""
    if layer.options.specialization in ("conv3d", "ungated"):
        return None
    if layer.options.specialization == "fixed":
        return layer.fixed_gates.double().mean(dim=1).cpu()
    return decide_gates(layer.all_gate_logits()).double().mean(dim=1).cpu()


@torch.no_grad()
def saturated_share(layer: DSTSLayer) -> float | None:
    """Share of gates with |g| > ln 11, whose gradient is zero without noise; None without gates."""
    if layer.options.specialization != "gated":
        return None
    return float((layer.all_gate_logits().abs() > SATURATION).double().mean())


def summarize_layer(layer: DSTSLayer, choice: Tensor | None) -> dict[str, Any]:
    """The figures of one layer, given the neurons `choice [n]` that n samples went to.

    Values are None where the variant has no such thing (no synapse, no gates).
    """
    usage = None if choice is None else usage_shares(choice, layer.num_neurons)
    shares = temporal_shares(layer)
    return {
        "usage": None if usage is None else usage.tolist(),
        "entropy": None if usage is None else usage_entropy(usage),
        "dead": None if usage is None else int((usage == 0).sum()),
        "temporal_share": None if shares is None else shares.tolist(),
        "saturated_share": saturated_share(layer),
    }


def summarize_head(head: DSTSHead, routing: Tensor | None) -> list[dict[str, Any]]:
    """`summarize_layer` of every layer, given `routing [n, L]` (None without synapse)."""
    return [
        summarize_layer(layer, None if routing is None else routing[:, position])
        for position, layer in enumerate(head.dsts_layers())
    ]
