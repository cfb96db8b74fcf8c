"""What a layer has learned to decide, as numbers for a log.

Enters: a layer and the neurons that samples chose. Leaves: a JSON dictionary per layer: usage,
its entropy, dead neurons, share of temporal channels per neuron, share of saturated gates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.layer import DSTSLayer
from dsts_pipeline.head.options import Specialization
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
    if layer.options.specialization == "conv3d":
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


# ---- How many parameters a DSTS module adds to a backbone, counted without building it. ---------
#
# Enters: channels, width, N, L and the variant. Leaves: counts, and the table for the paper's two
# backbones. With C = 2048 and kernels as the text writes them the module would have 1.8 billion
# parameters; the paper's 75M against 63M leaves 12M, which `width` near 164 gives.


class ModuleSize(NamedTuple):
    """Parameters of a module by what they belong to."""

    kernels: int
    scoring: int
    norms: int
    gates: int
    projections: int

    @property
    def total(self) -> int:
        """All of them; the classifier is the baseline's and not counted."""
        return sum(self)


BACKBONES = {"TPN SlowOnly-R50": (2048, 63_210_734), "Video Swin-B": (1024, 88_000_000)}
"""Channels of the tapped map, and parameters (Swin-B's known to a tenth of a million)."""


def module_size(
    in_channels: int,
    *,
    num_neurons: int = 10,
    num_layers: int = 3,
    width: int | None = None,
    synapse: bool = True,
    specialization: Specialization = "gated",
) -> ModuleSize:
    """Parameters of `DSTSHead` without its classifier; arguments as there."""
    if num_layers == 0:
        return ModuleSize(0, 0, 0, 0, 0)
    c = in_channels if width is None else width
    neurons = num_neurons * num_layers
    # Spatial 9, temporal 3, fusion 1; one 3x3x3 kernel without specialization.
    kernels, norms = (27, 1) if specialization == "conv3d" else (13, 2)
    return ModuleSize(
        kernels=neurons * kernels * c * c,
        scoring=neurons * c * c if synapse else 0,
        norms=neurons * norms * 2 * c,
        gates=neurons * c if specialization == "gated" else 0,
        projections=0 if width is None else 2 * in_channels * c,
    )


def size_table(width: int = 164) -> list[tuple[str, str, float, float]]:
    """Rows (backbone, width, module, backbone with module), sizes in millions of parameters."""
    rows = []
    for name, (channels, backbone) in BACKBONES.items():
        for chosen in (None, width):
            total = module_size(channels, width=chosen).total
            label = "as written" if chosen is None else f"width {chosen}"
            rows.append((name, label, total / 1e6, (backbone + total) / 1e6))
    return rows


def main() -> None:
    """Print the table: `python -m dsts_pipeline.head.inspection`."""
    print(f"{'backbone':<18} {'module':<11} {'module, M':>10} {'with backbone, M':>17}")
    for name, label, module, total in size_table():
        print(f"{name:<18} {label:<11} {module:>10.2f} {total:>17.2f}")


if __name__ == "__main__":
    main()
