"""The options of a DSTS layer and what they may be.

Enters: keyword arguments of `DSTSHead`. Leaves: one frozen, checked `LayerOptions`. Defaults are
the paper's text where it says something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Specialization = Literal["gated", "fixed", "conv3d"]
ImpulseKind = Literal["sum", "mean", "standardized"]
ImpulseGradient = Literal["map", "kernel"]
RoutingGradient = Literal["dense", "selected"]
NormStatistics = Literal["routed", "layer", "batch"]


@dataclass(frozen=True)
class LayerOptions:
    """What a layer does; see `DSTSHead` for each option's meaning.

    Raises:
        ValueError: An option is outside its range, or two exclude each other.
    """

    synapse: bool = True
    specialization: Specialization = "gated"
    impulse: ImpulseKind = "sum"
    impulse_spread: float = 1.0
    routing_gradient: RoutingGradient = "dense"
    norm_statistics: NormStatistics = "routed"
    impulse_gradient: ImpulseGradient = "map"
    shared_neuron: bool = False
    own_scale: float = 1.0
    temperature: float = 1.0
    gumbel_scale: float = 1.0
    gate_noise_scale: float = 1.0
    gate_init_std: float = 0.01

    def __post_init__(self) -> None:
        for name, kind in (
            ("specialization", Specialization),
            ("impulse", ImpulseKind),
            ("impulse_gradient", ImpulseGradient),
            ("routing_gradient", RoutingGradient),
            ("norm_statistics", NormStatistics),
        ):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                expected = ", ".join(repr(choice) for choice in allowed)
                raise ValueError(f"{name}={value!r} is unknown; expected one of {expected}")
        for name in ("impulse_spread", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("gumbel_scale", "gate_noise_scale", "gate_init_std", "own_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        selected = self.synapse and self.routing_gradient == "selected"
        if self.norm_statistics == "batch" and selected:
            raise ValueError(
                "norm_statistics='batch' needs the outputs of all neurons, which "
                "routing_gradient='selected' does not compute; use 'routed' or 'dense'"
            )


def check_sizes(
    in_channels: int, num_classes: int, num_neurons: int, num_layers: int, width: int | None
) -> None:
    """Refuse sizes that no head can have.

    Raises:
        ValueError: One is too small, or the width above the channels.
    """
    for name, value, least in (
        ("in_channels", in_channels, 1),
        ("num_classes", num_classes, 1),
        ("num_neurons", num_neurons, 1),
        ("num_layers", num_layers, 0),
        ("width", 1 if width is None else width, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value}; expected at least {least}")
    if width is not None and width > in_channels:
        raise ValueError(
            f"width={width} is above in_channels={in_channels}; use a smaller width, "
            "or width=None for no projection"
        )
