"""One DSTS layer: N specialized neurons of which each sample activates one (paper 3.2).

Enters: `x [B, T, H, W, C]`, channels last, and the pass's noise. Leaves: `[B, T, H, W, C]` and a
`LayerRecord` of what was decided. The layer owns its neurons' parameters with the neuron as first
axis; which of them are computed, and how, depends on the mode:
- training, dense estimator (the paper's) or no synapse: all N, joined in one product per operator;
- training, selected estimator, and test time: each sample's own neuron only, grouped by neuron.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsts_pipeline.head.convolution import SPATIAL, TEMPORAL, VOLUME, Extent, neighbour_columns
from dsts_pipeline.head.gates import decide_gates, halve_channels, sample_gates
from dsts_pipeline.head.grouping import Groups, group_samples, grouped_product
from dsts_pipeline.head.impulses import Impulses
from dsts_pipeline.head.noise import LayerNoise
from dsts_pipeline.head.norms import NeuronNorm
from dsts_pipeline.head.options import LayerOptions
from dsts_pipeline.head.synapse import choose, dense_coefficients, selected_coefficient


class LayerRecord(NamedTuple):
    """What a layer decided: `choice [B]` and `impulses [B, N]` (None without synapse)."""

    choice: Tensor | None
    impulses: Tensor | None


class Branch(NamedTuple):
    """One operator of all N neurons: its extent, kernels `[N, taps * C, C]` and norm."""

    extent: Extent
    kernels: Tensor
    norm: NeuronNorm


def kernel_matrices(kernel: Tensor, gates: Tensor | None) -> Tensor:
    """Kernels `[N, C_out, C_in, ...]` as matrices `[N, taps * C_in, C_out]` with gates folded in.

    `S(X * b) = S'(X)` where S' is S with its input channels scaled by `gates [N, C_in]`.
    """
    matrices = kernel.flatten(3).permute(0, 3, 2, 1)
    if gates is not None:
        matrices = matrices * gates[:, None, :, None]
    return matrices.flatten(1, 2)


def _new_kernel(*shape: int) -> nn.Parameter:
    kernel = torch.empty(shape)
    for neuron in kernel:
        nn.init.kaiming_uniform_(neuron.flatten(1), a=math.sqrt(5))
    return nn.Parameter(kernel)


class DSTSLayer(nn.Module):
    """A layer of N specialized neurons over C channels.

    Parameters, where the variant has them: `scoring_kernel [N, C, C]`,
    `spatial_kernel [N, C, C, 3, 3]`, `temporal_kernel [N, C, C, 3]`, `gate_logits [N, C]`,
    `fusion_kernel [N, C, C]`, `volume_kernel [N, C, C, 3, 3, 3]` (conv3d).
    """

    def __init__(self, channels: int, num_neurons: int, options: LayerOptions) -> None:
        super().__init__()
        self.channels, self.num_neurons, self.options = channels, num_neurons, options
        n, c = num_neurons, channels
        if options.synapse:
            self.scoring_kernel = _new_kernel(n, c, c)
            self.impulses = Impulses(n, options)
        if options.specialization == "conv3d":
            self.volume_kernel = _new_kernel(n, c, c, 3, 3, 3)
            self.volume_norm = NeuronNorm(n, c)
            return
        self.spatial_kernel = _new_kernel(n, c, c, 3, 3)
        self.temporal_kernel = _new_kernel(n, c, c, 3)
        self.fusion_kernel = _new_kernel(n, c, c)
        self.spatial_norm, self.temporal_norm = NeuronNorm(n, c), NeuronNorm(n, c)
        if options.specialization == "gated":
            self.gate_logits = nn.Parameter(options.gate_init_std * torch.randn(n, c))
        else:
            self.register_buffer("fixed_gates", halve_channels(n, c), persistent=False)

    def forward(
        self, x: Tensor, noise: LayerNoise | None, *, update: bool
    ) -> tuple[Tensor, LayerRecord]:
        """Route `x [B, T, H, W, C]`, run the neurons and give their output and the record.

        Args:
            noise: The pass's draw, in training mode; None for the decisions of test time.
            update: Whether running statistics move (in training mode only).
        """
        choice, impulses, logits = self.route(x, noise, update=update)
        branches = self.branches(noise)
        options = self.options
        run_all = choice is None or (self.training and options.routing_gradient == "dense")
        if run_all:
            output = self._run_all(x, branches, choice, logits, update=update)
        else:
            output = self._run_selected(x, branches, choice, update=update)
            if self.training:
                coefficient = selected_coefficient(choice, logits)
                output = output * coefficient.to(output.dtype)[:, None, None, None, None]
        return output, LayerRecord(choice, impulses)

    def route(
        self, x: Tensor, noise: LayerNoise | None, *, update: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Choice `[B]`, impulses `[B, N]` and the relaxed logits `[B, N]` of the synapse."""
        if not self.options.synapse:
            return None, None, None
        impulses = self.impulses(x, self.scoring_kernel, update=update)
        scale = self.options.gumbel_scale
        gumbel = None if noise is None else scale * noise.gumbel.to(impulses.dtype)
        choice, logits = choose(impulses, gumbel, self.options.temperature)
        return choice, impulses, logits

    def gates(self, noise: LayerNoise | None) -> Tensor | None:
        """Gates `b [N, C]` of this pass; None where the variant has none."""
        if self.options.specialization == "conv3d":
            return None
        if self.options.specialization == "fixed":
            return self.fixed_gates
        if noise is None:
            return decide_gates(self.gate_logits)
        scale = self.options.gate_noise_scale
        return sample_gates(self.gate_logits, noise.gate_normal, noise.gate_hard, scale)

    def branches(self, noise: LayerNoise | None) -> tuple[Branch, ...]:
        """The operators of the neurons, gates folded into their kernels."""
        gates = self.gates(noise)
        if gates is None:
            volume = kernel_matrices(self.volume_kernel, None)
            return (Branch(VOLUME, volume, self.volume_norm),)
        spatial = kernel_matrices(self.spatial_kernel, 1.0 - gates)
        temporal = kernel_matrices(self.temporal_kernel, gates)
        return (
            Branch(SPATIAL, spatial, self.spatial_norm),
            Branch(TEMPORAL, temporal, self.temporal_norm),
        )

    def raw_outputs(self, x: Tensor) -> Iterator[tuple[NeuronNorm, Tensor, Tensor]]:
        """Operators' outputs before their norms, with the decisions of test time.

        Yields:
            Per operator its norm, outputs `[B, P, N or 1, C]` (1: of each sample's own neuron) and
            which sample feeds which neuron's statistics, `[B, N]` float64.
        """
        choice, _, _ = self.route(x, None, update=False)
        batch, n = x.shape[0], self.num_neurons
        if choice is None or self.options.norm_statistics == "batch":
            samples = torch.ones(batch, n, dtype=torch.float64, device=x.device)
            for extent, kernels, norm in self.branches(None):
                yield norm, self._joined_operator(x, extent, kernels), samples
            return
        groups = group_samples(choice, n)
        samples = nn.functional.one_hot(choice[groups.order], n).double()
        for extent, kernels, norm in self.branches(None):
            raw = _grouped_operator(x[groups.order], extent, kernels, groups)
            yield norm, raw[:, :, None], samples

    def _joined_operator(self, x: Tensor, extent: Extent, kernels: Tensor) -> Tensor:
        """Operator of all N neurons on `x [B, T, H, W, C]` in one product: `[B, P, N, C]`."""
        joined = kernels.permute(1, 0, 2).flatten(1)  # [taps * C, N * C]
        raw = neighbour_columns(x, extent) @ joined
        return raw.view(x.shape[0], -1, self.num_neurons, self.channels)

    def _run_all(
        self,
        x: Tensor,
        branches: tuple[Branch, ...],
        choice: Tensor | None,
        logits: Tensor | None,
        *,
        update: bool,
    ) -> Tensor:
        """Outputs of all neurons, summed with straight-through or (no synapse) equal weights."""
        batch, n = x.shape[0], self.num_neurons
        if choice is None or logits is None:
            samples = x.new_ones(batch, n)
            coefficients = samples / n
        else:
            coefficients = dense_coefficients(choice, logits)
            samples = coefficients.detach()
            if self.options.norm_statistics == "batch":
                samples = torch.ones_like(samples)
        z = x.new_zeros(())
        for extent, kernels, norm in branches:
            raw = self._joined_operator(x, extent, kernels)
            z = z + norm.normalize_all(_widen(raw), samples, update=update).relu()
        z = z * coefficients[:, None, :, None]
        if self.options.specialization == "conv3d":
            return z.sum(dim=2).view_as(x)
        joined = self.fusion_kernel.transpose(1, 2).flatten(0, 1)  # [N * C, C]
        return (z.flatten(2) @ joined).view_as(x)

    def _run_selected(
        self, x: Tensor, branches: tuple[Branch, ...], choice: Tensor, *, update: bool
    ) -> Tensor:
        """Output of each sample's own neuron."""
        groups = group_samples(choice, self.num_neurons)
        x, choice = x[groups.order], choice[groups.order]
        z = x.new_zeros(())
        for extent, kernels, norm in branches:
            raw = _grouped_operator(x, extent, kernels, groups)
            z = z + norm.normalize_routed(_widen(raw), choice, update=update).relu()
        if self.options.specialization != "conv3d":
            fusion = self.fusion_kernel.transpose(1, 2)
            z = grouped_product(z.flatten(0, 1), fusion, groups.counts)
        return z.view_as(x)[groups.inverse]


def _grouped_operator(x: Tensor, extent: Extent, kernels: Tensor, groups: Groups) -> Tensor:
    """Operator of each sample's neuron on sorted `x [B, T, H, W, C]`: `[B, P, C]`."""
    rows = neighbour_columns(x, extent).flatten(0, 3)
    return grouped_product(rows, kernels, groups.counts).view(x.shape[0], -1, x.shape[-1])


def _widen(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
