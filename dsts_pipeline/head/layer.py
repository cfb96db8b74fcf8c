"""One DSTS layer: N specialized neurons of which each sample activates one (paper 3.2).

Enters: `x [B, T, H, W, C]`, channels last, and the pass's noise. Leaves: `[B, T, H, W, C]`, or its
average over positions, and a `LayerRecord` of what was decided. The layer owns its neurons'
parameters with the neuron as first axis. What is computed:
- each sample's own neuron, grouped by neuron: always, and nothing else at test time or with the
  selected estimator;
- with the dense estimator (the paper's) in training, also all N neurons' outputs, without a graph;
- without synapse, or with norms over the whole batch: all N, joined in one product per operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.head.neurons import (
    SPATIAL,
    TEMPORAL,
    VOLUME,
    Branch,
    Routing,
    columns_of,
    group_samples,
    joint_product,
    routed_operator,
    routed_product,
    run_all,
    run_frozen,
    run_joint,
    run_routed,
)
from dsts_pipeline.head.norms import NeuronNorm
from dsts_pipeline.head.routing import (
    Impulses,
    LayerNoise,
    choose,
    decide_gates,
    dense_coefficients,
    halve_channels,
    sample_gates,
    selected_coefficient,
)

# ---- the dense estimator -------------------------------------------------------------------------
#
# With coefficients `y = hard + (soft - sg(soft))`, the layer's output `sum_i y_i n_i(X)` is the
# chosen neuron's output plus `sum_i (soft_i - sg(soft_i)) n_i(X)`. The second sum is zero; its
# gradient reaches `soft` alone: `dL/d soft_i = <dL/dZ, n_i(X)>`. So the unchosen neurons need a
# forward pass without a graph, and no backward pass.


class _RoutingTerm(torch.autograd.Function):
    @staticmethod
    def forward(soft: Tensor, z: Tensor, fusion: Tensor | None) -> Tensor:
        return z.new_zeros(*z.shape[:2], z.shape[3] if fusion is None else fusion.shape[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, fusion = ctx.saved_tensors
        if fusion is None:
            back = gradient[:, :, None]
        else:
            back = (gradient @ fusion.flatten(0, 1).t()).view_as(z)
        return (back * z).sum(dim=(1, 3)), None, None


def _weigh(weights: Tensor, z: Tensor, fusion: Tensor | None) -> Tensor:
    """`sum_i weights_i n_i(X)` `[B, P, M]`."""
    z = z * weights[:, None, :, None]
    return z.sum(dim=2) if fusion is None else z.flatten(2) @ fusion.flatten(0, 1)


def routing_term(soft: Tensor, z: Tensor, fusion: Tensor | None, *, first_order: bool) -> Tensor:
    """Zero `[B, P, M]` whose gradient is the dense estimator's.

    Args:
        soft: `[B, N]`, with gradient.
        z: `[B, P, N, C]` of all neurons; needs no graph if `first_order`.
        fusion: `[N, C, M]`, or None for no fusion.
        first_order: Whether nobody differentiates this term's gradient, in either mode: a
                derivative of the coefficients meets the neurons' own gradients there.
    """
    if first_order and not torch.compiler.is_compiling():
        return _RoutingTerm.apply(soft, z, fusion)
    return _weigh(soft - soft.detach(), z, fusion)


# ---- parameters and their arrangement as matrices ------------------------------------------------


def new_kernel(*shape: int) -> nn.Parameter:
    """A kernel `[N, C_out, C_in, ...]`, each neuron's drawn as torch draws a convolution's."""
    kernel = torch.empty(shape)
    for neuron in kernel:
        nn.init.kaiming_uniform_(neuron.flatten(1), a=math.sqrt(5))
    return nn.Parameter(kernel)


def kernel_matrices(kernel: Tensor, gates: Tensor | None) -> Tensor:
    """Kernels `[N, C_out, C_in, ...]` as matrices `[N, taps * C_in, C_out]` with gates folded in.

    `S(X * b) = S'(X)` where S' is S with its input channels scaled by `gates [N, C_in]`.
    """
    matrices = kernel.flatten(3).permute(0, 3, 2, 1)
    if gates is not None:
        matrices = matrices * gates[:, None, :, None]
    return matrices.flatten(1, 2)


# ---- the layer -----------------------------------------------------------------------------------


class LayerRecord(NamedTuple):
    """What a layer decided: `choice [B]` and `impulses [B, N]` (None without synapse)."""

    choice: Tensor | None
    impulses: Tensor | None


class Pass(NamedTuple):
    """How a pass is made.

    update: Running statistics move (in training mode only). pool: Outputs are averaged over
    positions, before the fusion, which is linear. first_order: Gradients will not be differentiated
    again, so what only that needs is left out.
    """

    update: bool = False
    pool: bool = False
    first_order: bool = False


class DSTSLayer(nn.Module):
    """A layer of N specialized neurons over C channels.

    Parameters, where the variant has them: `scoring_kernel [N, C, C]`,
    `spatial_kernel [N, C, C, 3, 3]`, `temporal_kernel [N, C, C, 3]`, `gate_logits [N, C]`,
    `fusion_kernel [N, C, C]`, `volume_kernel [N, C, C, 3, 3, 3]` (conv3d, which has no fusion).
    With `shared_neuron`, each is added to `shared_spatial_kernel [C, C, 3, 3]` and so on, after
    multiplication with `own_scale`.
    """

    fixed_gates: Tensor
    impulses: Impulses

    def __init__(self, channels: int, options: HeadSettings) -> None:
        super().__init__()
        self.channels = channels
        self.num_neurons = options.num_neurons
        self.options = options
        n = options.num_neurons
        c = channels
        of_layer = options.norm_statistics == "layer"
        if options.synapse:
            self.scoring_kernel = new_kernel(n, c, c)
            self.impulses = Impulses(options)
        if options.specialization == "conv3d":
            self._add_kernel("volume", c, c, 3, 3, 3)
            self.volume_norm = NeuronNorm(n, c, of_layer=of_layer)
            return
        self._add_kernel("spatial", c, c, 3, 3)
        self._add_kernel("temporal", c, c, 3)
        self._add_kernel("fusion", c, c)
        self.spatial_norm = NeuronNorm(n, c, of_layer=of_layer)
        self.temporal_norm = NeuronNorm(n, c, of_layer=of_layer)
        if options.specialization == "gated":
            self.gate_logits = nn.Parameter(options.gate_init_std * torch.randn(n, c))
            if options.shared_neuron:
                self.shared_gate_logits = nn.Parameter(options.gate_init_std * torch.randn(c))
        else:
            self.register_buffer("fixed_gates", halve_channels(n, c), persistent=False)

    def _add_kernel(self, name: str, *shape: int) -> None:
        """`<name>_kernel [N, *shape]`; where a neuron is shared also `shared_<name>_kernel`."""
        own = new_kernel(self.num_neurons, *shape)
        if self.options.shared_neuron:
            shared = nn.Parameter(own[0].detach().clone())
            self.register_parameter(f"shared_{name}_kernel", shared)
            nn.init.zeros_(own)
        self.register_parameter(f"{name}_kernel", own)

    def kernel(self, name: str, neurons: Tensor | None = None) -> Tensor:
        """The "spatial", "temporal", "fusion" or "volume" kernel of all neurons or of `[M]`."""
        return self._with_shared(f"{name}_kernel", neurons)

    def all_gate_logits(self) -> Tensor:
        """Gate logits `[N, C]` of a gated layer, with what its neurons share."""
        return self._with_shared("gate_logits")

    def _with_shared(self, name: str, neurons: Tensor | None = None) -> Tensor:
        own = _take(getattr(self, name), neurons)
        if not self.options.shared_neuron:
            return own
        return getattr(self, f"shared_{name}") + self.options.own_scale * own

    def forward(self, x: Tensor, noise: LayerNoise | None, how: Pass) -> tuple[Tensor, LayerRecord]:
        """Route `x [B, T, H, W, C]`, run neurons, give their output and the record.

        Args:
            noise: The pass's draw, in training mode; None for the decisions of test time.
            how: See `Pass`.
        """
        record, logits = self.route(x, noise, how)
        choice = record.choice
        if choice is None or logits is None:
            weights = x.new_full((x.shape[0], self.num_neurons), 1.0 / self.num_neurons)
            output = self._run_jointly(x, weights, noise, how)
        elif self.training and self.options.norm_statistics == "batch":
            output = self._run_jointly(x, dense_coefficients(choice, logits), noise, how)
        elif not self.training:
            output = self._run_chosen(x, choice, how)
        else:
            output = self._run_routed(x, choice, logits, noise, how)
        if how.pool:
            return output.flatten(1), record
        return output.view(*x.shape[:4], -1), record

    def route(
        self, x: Tensor, noise: LayerNoise | None, how: Pass
    ) -> tuple[LayerRecord, Tensor | None]:
        """The synapse's decisions and the relaxed logits `[B, N]` that they were taken from."""
        if not self.options.synapse:
            return LayerRecord(None, None), None
        scored = x.detach() if self.options.impulse_gradient == "kernel" else x
        impulses = self.impulses(scored, self.scoring_kernel, update=how.update)
        scale = self.options.gumbel_scale
        gumbel = None if noise is None else scale * noise.gumbel.to(impulses.dtype)
        choice, logits = choose(impulses, gumbel, self.options.temperature)
        return LayerRecord(choice, impulses), logits

    def gates(self, noise: LayerNoise | None) -> Tensor | None:
        """Gates `b [N, C]` of this pass; None where the variant has none."""
        if self.options.specialization == "conv3d":
            return None
        if self.options.specialization == "fixed":
            return self.fixed_gates
        logits = self.all_gate_logits()
        if noise is None:
            return decide_gates(logits)
        scale = self.options.gate_noise_scale
        return sample_gates(logits, noise.gate_normal, noise.gate_hard, scale)

    def branches(
        self, noise: LayerNoise | None, neurons: Tensor | None = None
    ) -> tuple[Branch, ...]:
        """The operators of all neurons, or of `neurons [M]`, gates folded into their kernels."""
        gates = self.gates(noise)
        if gates is None:
            volume = kernel_matrices(self.kernel("volume", neurons), None)
            return (Branch(VOLUME, volume, self.volume_norm),)
        gates = _take(gates, neurons)
        spatial = kernel_matrices(self.kernel("spatial", neurons), 1.0 - gates)
        temporal = kernel_matrices(self.kernel("temporal", neurons), gates)
        return (
            Branch(SPATIAL, spatial, self.spatial_norm),
            Branch(TEMPORAL, temporal, self.temporal_norm),
        )

    def fusion(self, neurons: Tensor | None = None) -> Tensor | None:
        """Fusion kernels as matrices `[N, C_in, C_out]`; None for conv3d."""
        if self.options.specialization == "conv3d":
            return None
        return self.kernel("fusion", neurons).transpose(1, 2)

    def raw_outputs(self, x: Tensor) -> Iterator[tuple[NeuronNorm, Tensor, Tensor]]:
        """Operators' outputs before their norms, with the decisions of test time.

        Yields:
            Per operator its norm, outputs `[B, P, N or 1, C]` (1: of each sample's own neuron) and
            which sample feeds which neuron's statistics, `[B, N]` float64.
        """
        choice = self.route(x, None, Pass())[0].choice
        branches = self.branches(None)
        if choice is None or self.options.norm_statistics == "batch":
            everyone = torch.ones(
                x.shape[0], self.num_neurons, dtype=torch.float64, device=x.device
            )
            for branch in branches:
                yield branch.norm, joint_product(columns_of(x, branch), branch.kernels), everyone
            return
        x, routing = self._sort(x, choice, self.num_neurons)
        for branch in branches:
            samples = branch.norm.fed_by(routing.choice).double()
            yield branch.norm, routed_operator(x, branch, routing)[:, :, None], samples

    def _sort(self, x: Tensor, choice: Tensor, num_neurons: int) -> tuple[Tensor, Routing]:
        """The batch in order of its neurons; as it is under torch.compile."""
        if torch.compiler.is_compiling():
            return x, Routing(choice, None)
        groups = group_samples(choice, num_neurons)
        return x[groups.order], Routing(choice[groups.order], groups)

    def _run_chosen(self, x: Tensor, choice: Tensor, how: Pass) -> Tensor:
        """Test time: output `[B, P or 1, C]` of each sample's neuron; no other one is touched."""
        neurons = None
        num_neurons = self.num_neurons
        if not torch.compiler.is_compiling():
            neurons, choice = choice.unique(return_inverse=True)
            num_neurons = len(neurons)
        x, routing = self._sort(x, choice, num_neurons)
        branches = self.branches(None, neurons)
        affines = [branch.norm.running_affine(neurons) for branch in branches]
        z = run_frozen(x, branches, affines, routing)
        return _unsort(_fuse(z, self.fusion(neurons), routing, how), routing)

    def _run_routed(
        self, x: Tensor, choice: Tensor, logits: Tensor, noise: LayerNoise | None, how: Pass
    ) -> Tensor:
        """Training: output `[B, P or 1, C]` of each sample's neuron, with its gradient."""
        branches = self.branches(noise)
        fusion = self.fusion()
        ordered, routing = self._sort(x, choice, self.num_neurons)
        routed = run_routed(ordered, branches, routing, update=how.update)
        z = _fuse(routed.z, fusion, routing, how)
        if self.options.routing_gradient == "selected":
            coefficient = selected_coefficient(choice, logits).to(z.dtype)
            return _unsort(z, routing) * coefficient[:, None, None]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not how.first_order):
            everything = run_all(branches, routed)
            if how.pool:
                everything = everything.mean(dim=1, keepdim=True)
        soft = logits.softmax(dim=1).to(z.dtype)
        if routing.groups is not None:
            soft = soft[routing.groups.order]
        z = z + routing_term(soft, everything, fusion, first_order=how.first_order)
        return _unsort(z, routing)

    def _run_jointly(
        self, x: Tensor, weights: Tensor, noise: LayerNoise | None, how: Pass
    ) -> Tensor:
        """Outputs `[B, P or 1, C]` of all neurons, summed with `weights [B, N]`."""
        fusion = self.fusion()
        z = run_joint(x, self.branches(noise), training=self.training, update=how.update)
        if how.pool:
            z = z.mean(dim=1, keepdim=True)
        z = z * weights.to(z.dtype)[:, None, :, None]
        return z.sum(dim=2) if fusion is None else z.flatten(2) @ fusion.flatten(0, 1)


def _fuse(z: Tensor, fusion: Tensor | None, routing: Routing, how: Pass) -> Tensor:
    """Pool `z [B, P, C]` where wanted, then fuse each sample by its own neuron."""
    if how.pool:
        z = z.mean(dim=1, keepdim=True)
    return z if fusion is None else routed_product(z, fusion, routing)


def _unsort(z: Tensor, routing: Routing) -> Tensor:
    return z if routing.groups is None else z[routing.groups.inverse]


def _take(values: Tensor, neurons: Tensor | None) -> Tensor:
    return values if neurons is None else values[neurons]
