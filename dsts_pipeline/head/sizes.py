"""How many parameters a DSTS module adds to a backbone, counted without building it.

Enters: channels, width, N, L and the variant. Leaves: counts, and the table for the paper's two
backbones. With C = 2048 and kernels as the text writes them the module would have 1.8 billion
parameters; the paper's 75M against 63M leaves 12M, which `width` near 164 gives.
"""

from __future__ import annotations

from typing import NamedTuple

from dsts_pipeline.head.options import Specialization


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
    """Print the table: `python -m dsts_pipeline.head.sizes`."""
    print(f"{'backbone':<18} {'module':<11} {'module, M':>10} {'with backbone, M':>17}")
    for name, label, module, total in size_table():
        print(f"{name:<18} {label:<11} {module:>10.2f} {total:>17.2f}")


if __name__ == "__main__":
    main()
