"""Every variant of the head, small, for comparisons; and how to build it with its reference."""

from __future__ import annotations

import torch

from tests.reference.literal_head import LiteralHead

BASE = {"num_neurons": 3, "num_layers": 2}
STANDARD = {"impulse": "standardized", "impulse_spread": 2.0}
ATTENTIVE = {"readout": "attentive", "readout_heads": 2}
VARIANTS = {
    "paper": {},
    "selected": {"routing_gradient": "selected"},
    "mean": {"impulse": "mean"},
    "standardized": STANDARD,
    "standardized-selected": {**STANDARD, "routing_gradient": "selected"},
    "width": {"width": 5},
    "width-selected": {"width": 5, "routing_gradient": "selected"},
    "whole-batch-norm": {"norm_statistics": "batch"},
    "no-synapse": {"synapse": False},
    "no-synapse-conv3d": {"synapse": False, "specialization": "conv3d"},
    "no-synapse-fixed-width": {"synapse": False, "specialization": "fixed", "width": 4},
    "fixed": {"specialization": "fixed"},
    "fixed-selected": {"specialization": "fixed", "routing_gradient": "selected"},
    "conv3d": {"specialization": "conv3d"},
    "conv3d-selected": {"specialization": "conv3d", "routing_gradient": "selected"},
    "shared-neuron": {"shared_neuron": True},
    "shared-neuron-selected": {"shared_neuron": True, "routing_gradient": "selected"},
    "shared-neuron-conv3d": {"shared_neuron": True, "specialization": "conv3d", "width": 4},
    "shared-neuron-scaled": {"shared_neuron": True, "own_scale": 0.3, "width": 4},
    "scores-alone": {"impulse_gradient": "kernel"},
    "scores-alone-selected": {
        **STANDARD,
        "impulse_gradient": "kernel",
        "routing_gradient": "selected",
    },
    "shared-neuron-no-synapse": {"shared_neuron": True, "synapse": False},
    "layer-norm": {"norm_statistics": "layer"},
    "layer-norm-selected": {"norm_statistics": "layer", "routing_gradient": "selected"},
    "layer-norm-shared-selected": {
        **STANDARD,
        "norm_statistics": "layer",
        "shared_neuron": True,
        "routing_gradient": "selected",
        "layer_residual": True,
        "width": 5,
    },
    "layer-norm-conv3d": {"norm_statistics": "layer", "specialization": "conv3d"},
    "no-skip": {"skip": False},
    "residual": {"layer_residual": True},
    "residual-width": {"layer_residual": True, "width": 4, "routing_gradient": "selected"},
    "zero-start": {"zero_start": True},
    "one-neuron": {"num_neurons": 1},
    "one-neuron-selected": {"num_neurons": 1, "routing_gradient": "selected"},
    "many-neurons": {"num_neurons": 12, "num_layers": 1},
    "many-neurons-selected": {"num_neurons": 12, "routing_gradient": "selected"},
    "three-layers": {"num_layers": 3, "num_neurons": 2},
    "no-layer": {"num_layers": 0},
    "tempered": {"temperature": 0.5, "gumbel_scale": 0.7, "gate_noise_scale": 0.3},
    "house-default": {
        **STANDARD,
        "width": 5,
        "routing_gradient": "selected",
        "layer_residual": True,
        "zero_start": True,
    },
    "bottleneck": {"bottleneck": 4},
    "bottleneck-selected": {**STANDARD, "bottleneck": 2, "routing_gradient": "selected"},
    "bottleneck-fixed": {"bottleneck": 3, "specialization": "fixed"},
    "bottleneck-conv3d": {"bottleneck": 3, "specialization": "conv3d"},
    "bottleneck-shared-layer-norm": {
        "bottleneck": 4,
        "shared_neuron": True,
        "norm_statistics": "layer",
        "routing_gradient": "selected",
    },
    "bottleneck-no-synapse": {"bottleneck": 4, "synapse": False, "zero_start": True},
    "common": {"common_neuron": True},
    "common-selected": {"common_neuron": True, "width": 4, "routing_gradient": "selected"},
    "common-fixed-layer-norm": {
        "common_neuron": True,
        "specialization": "fixed",
        "norm_statistics": "layer",
        "routing_gradient": "selected",
    },
    "common-whole-batch-norm": {"common_neuron": True, "norm_statistics": "batch"},
    "common-no-synapse": {"common_neuron": True, "synapse": False},
    "common-shared-bottleneck-conv3d": {
        "common_neuron": True,
        "shared_neuron": True,
        "bottleneck": 3,
        "specialization": "conv3d",
        "routing_gradient": "selected",
    },
    "attentive": ATTENTIVE,
    "attentive-width": {**ATTENTIVE, "width": 4, "routing_gradient": "selected"},
    "attentive-deep": {**ATTENTIVE, "readout_depth": 3, "routing_gradient": "selected"},
    "attentive-narrow": {**ATTENTIVE, "readout_width": 4, "readout_depth": 2},
    "attentive-residual": {**ATTENTIVE, "layer_residual": True},
    "attentive-zero-start": {**ATTENTIVE, "zero_start": True, "layer_residual": True},
    "attentive-no-skip": {**ATTENTIVE, "skip": False, "specialization": "conv3d"},
    "attentive-no-layer": {**ATTENTIVE, "num_layers": 0, "readout_depth": 2},
    "attentive-positions": {**ATTENTIVE, "readout_positions": True, "readout_depth": 2},
    "attentive-positions-narrow": {
        **ATTENTIVE,
        "readout_positions": True,
        "readout_width": 4,
        "width": 4,
        "routing_gradient": "selected",
    },
    "ungated": {"specialization": "ungated"},
    "ungated-selected": {**STANDARD, "specialization": "ungated", "routing_gradient": "selected"},
    "long-time": {"temporal_taps": 5},
    "long-time-bottleneck": {
        "temporal_taps": 7,
        "bottleneck": 3,
        "specialization": "ungated",
        "common_neuron": True,
        "routing_gradient": "selected",
    },
    "point-time-fixed": {"temporal_taps": 1, "specialization": "fixed", "bottleneck": 4},
    "attentive-no-synapse": {**ATTENTIVE, "synapse": False},
    "dropout": {"readout_dropout": 0.4},
    "everything": {
        **STANDARD,
        **ATTENTIVE,
        "bottleneck": 4,
        "common_neuron": True,
        "routing_gradient": "selected",
        "layer_residual": True,
        "zero_start": True,
        "readout_dropout": 0.3,
    },
}
CHANNELS, CLASSES, SAMPLES, EXTENT = 6, 4, 5, (3, 3, 2)


def build(name, seed=0):
    """A `DSTSHead` in float64 with nothing at its initial symmetry, and its configuration."""
    from dsts_pipeline.head import DSTSHead

    config = {**BASE, **VARIANTS[name]}
    torch.manual_seed(seed)
    head = DSTSHead.paper(CHANNELS, CLASSES, **config).double()
    with torch.no_grad():
        for parameter_name, parameter in head.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter_name.endswith("scoring_kernel"):
                # Impulses of about the size of the noise, so that routing varies.
                parameter.copy_(noise * 0.03 if config.get("impulse", "sum") == "sum" else noise)
            elif parameter_name.endswith("gate_logits"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.add_(0.3 * noise)
        for buffer_name, buffer in head.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
            elif buffer_name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return head, config


def reference_of(head, config, parameters=None):
    """The literal head on copies of `head`'s tensors; `parameters` replace some of them."""
    tensors = {name: value.detach().clone() for name, value in head.state_dict().items()} | dict(
        parameters or {}
    )
    return LiteralHead(config, tensors)


def sample_input(seed=1, samples=SAMPLES):
    """Maps with classes, float64."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(samples, CHANNELS, *EXTENT, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return maps, labels


def draw(head, seed=2, samples=SAMPLES):
    """The noise of one pass."""
    return head.draw_noise(samples, torch.Generator().manual_seed(seed))
