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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.head.neurons import (
    POINT,
    SPATIAL,
    VOLUME,
    Branch,
    Extent,
    Routing,
    fold,
    have_tangents,
    is_fixed,
    joint_product,
    one_hot,
    routed_product,
    run_frozen,
    run_joint,
    run_routed,
    sort_samples,
    widen,
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
# chosen neuron's output plus `R = sum_i (soft_i - sg(soft_i)) n_i(X)`. R is zero. Its gradient by
# `soft` is `psi_i = <dL/dZ, n_i(X)>`; by everything that makes `n_i` it is zero, since the weights
# are: no product is computed for it. Where that zero is differentiated again, its derivative by
# `soft_i` along a direction V is `<dL/dZ, n_i'(X) V>`, and `psi` has ordinary ones. In products
# over all neurons: 1 for psi, 2 for the derivative along V, 2 for those of psi; autograd on the
# sum itself takes 8.


class _AllNeurons(NamedTuple):
    """What the outputs of all neurons are made of, but for the tensors.

    The tensors: x, then kernels `[N, C, taps, C]` (norms folded in) and shift `[N, C]` of each
    branch, then the fusion `[N, M, C]` if there is one.
    """

    extents: tuple[Extent, ...]
    pool: bool
    fused: bool

    def operators(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Extent, Tensor, Tensor]]:
        """Extent, kernels and shift of each branch."""
        yield from zip(self.extents, tensors[1::2], tensors[2::2], strict=False)

    def activate(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Outputs `[B, P, N, C]` of each branch."""
        return [
            (widen(joint_product(tensors[0], kernels, extent)) + shift).relu()
            for extent, kernels, shift in self.operators(tensors)
        ]

    def combine(self, parts: list[Tensor]) -> Tensor:
        """`z [B, P or 1, N, C]` of the branches' outputs or of what moves them."""
        z = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return z.mean(dim=1, keepdim=True) if self.pool else z

    def weigh(self, gradient: Tensor, z: Tensor, fusion: Tensor | None) -> Tensor:
        """`<gradient, z_i F_i>` `[B, N]` of `gradient [B, P or 1, M]`."""
        gradient = gradient.to(z.dtype)
        if fusion is None:
            back = gradient[:, :, None]
        else:
            back = (gradient @ _joined_fusion(fusion).to(z.dtype).t()).view_as(z)
        return (back * z).sum(dim=(1, 3))

    def fusion_of(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """The fusion among `tensors`."""
        return tensors[-1] if self.fused else None


class _RoutingTerm(torch.autograd.Function):
    """R, of `soft [B, N]` and what makes the neurons' outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        soft: Tensor,
        like: Tensor,
        neurons: _AllNeurons,
        first_order: bool,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.neurons = neurons
        ctx.first_order = first_order
        ctx.kept = []
        ctx.save_for_backward(soft, *tensors)
        return torch.zeros_like(like)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        soft, *tensors = ctx.saved_tensors
        neurons = ctx.neurons
        if ctx.first_order or not torch.is_grad_enabled():
            # What comes back a second time finds the outputs of the first.
            z = ctx.kept[0] if ctx.kept else neurons.combine(neurons.activate(tensors))
            for_soft = neurons.weigh(gradient, z, neurons.fusion_of(tensors))
            return for_soft, None, None, None, *[None] * len(tensors)
        for_soft, *zeros = _RoutingGradient.apply(soft, gradient, neurons, ctx.kept, *tensors)
        return for_soft, None, None, None, *zeros


class _RoutingGradient(torch.autograd.Function):
    """Gradients of R: psi, and zeros that can be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        soft: Tensor,
        gradient: Tensor,
        neurons: _AllNeurons,
        kept: list[Tensor],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in (gradient, *tensors)]
            parts = neurons.activate(leaves[1:])
            z = neurons.combine(parts)
            psi = neurons.weigh(leaves[0], z, neurons.fusion_of(leaves[1:]))
        ctx.neurons = neurons
        ctx.leaves = leaves
        ctx.parts = [part.detach() for part in parts]
        ctx.psi = psi
        ctx.z = z.detach()
        kept.append(ctx.z)
        ctx.set_materialize_grads(False)
        return psi.detach(), *(torch.zeros_like(part) for part in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_psi: Tensor | None, *along: Tensor | None) -> tuple:
        for_soft = _psi_along(ctx, along) if any(part is not None for part in along) else None
        found: Sequence[Tensor | None] = [None] * len(ctx.leaves)
        if of_psi is not None:
            found = torch.autograd.grad(ctx.psi, ctx.leaves, of_psi, allow_unused=True)
        return for_soft, found[0], None, None, *found[1:]


def _psi_along(ctx: Any, along: tuple[Tensor | None, ...]) -> Tensor:
    """`<gradient, n_i'(X) V>` `[B, N]` for directions V of the tensors."""
    neurons: _AllNeurons = ctx.neurons
    gradient, *tensors = (leaf.detach() for leaf in ctx.leaves)
    along_x = along[0]
    moved = []
    for number, (extent, kernels, _) in enumerate(neurons.operators(tensors)):
        along_kernels, along_shift = along[2 * number + 1 : 2 * number + 3]
        change = torch.zeros_like(ctx.parts[number])
        if along_x is not None:
            change = change + joint_product(along_x, kernels, extent)
        if along_kernels is not None:
            change = change + joint_product(tensors[0], along_kernels, extent)
        if along_shift is not None:
            change = change + along_shift
        moved.append(change * (ctx.parts[number] > 0))
    found = neurons.weigh(gradient, neurons.combine(moved), neurons.fusion_of(tensors))
    along_fusion = along[-1] if neurons.fused else None
    if along_fusion is not None:
        found = found + neurons.weigh(gradient, ctx.z, along_fusion)
    return found


def routing_term(
    soft: Tensor, like: Tensor, neurons: _AllNeurons, *tensors: Tensor, first_order: bool
) -> Tensor:
    """R: zeros like `like [B, P or 1, M]` whose gradients are the dense estimator's.

    Args:
        soft: `[B, N]`, with gradient.
        first_order: Whether nobody differentiates the gradients again.
    """
    if first_order:
        tensors = tuple(part.detach() for part in tensors)
    device = soft.device.type
    if torch.is_autocast_enabled(device):  # which is off where the gradients are computed
        narrow = torch.get_autocast_dtype(device)
        tensors = tuple(part if part.dim() == 2 else part.to(narrow) for part in tensors)
    # The functions above know neither a compiler nor forward-mode derivatives.
    if torch.compiler.is_compiling() or have_tangents(*tensors):
        z = neurons.combine(neurons.activate(tensors))
        z = z * (soft - soft.detach())[:, None, :, None]
        fusion = neurons.fusion_of(tensors)
        if fusion is None:
            return z.sum(dim=2)
        return z.flatten(2) @ _joined_fusion(fusion).to(z.dtype)
    return _RoutingTerm.apply(soft, like, neurons, first_order, *tensors)


def _joined_fusion(fusion: Tensor) -> Tensor:
    """`[N, M, C]` as one matrix `[N * C, M]`."""
    return fusion.transpose(1, 2).flatten(0, 1)


# ---- parameters and the operators' kernels ------------------------------------------------


def new_kernel(*shape: int) -> nn.Parameter:
    """A kernel `[N, C_out, C_in, ...]`, each neuron's drawn as torch draws a convolution's."""
    kernel = torch.empty(shape)
    for neuron in kernel:
        nn.init.kaiming_uniform_(neuron.flatten(1), a=math.sqrt(5))
    return nn.Parameter(kernel)


def gated_kernels(kernel: Tensor, gates: Tensor | None) -> Tensor:
    """Kernels `[N, C_out, C_in, ...]` as `[N, C_out, taps, C_in]` with gates folded in.

    `S(X * b) = S'(X)` where S' is S with its input channels scaled by `gates [N, C_in]`.
    """
    kernels = kernel.flatten(3).transpose(2, 3)
    return kernels.contiguous() if gates is None else kernels.contiguous() * gates[:, None, None]


# ---- the layer -----------------------------------------------------------------------------------


class LayerRecord(NamedTuple):
    """What a layer decided: `choice [B]` and `impulses [B, N]` (None without synapse)."""

    choice: Tensor | None
    impulses: Tensor | None


class Pass(NamedTuple):
    """How a pass is made.

    update: Running statistics move (in training mode only). pool: Outputs are averaged over
    positions, before the fusion, which is linear. first_order: Gradients will not be differentiated
    again, so what only that needs is left out. by_upstream: They will be, by upstream parameters
    alone (`UPSTREAM_NAMES`), so what only others need is left out. is_first: No upstream parameter
    decides the layer's input.
    """

    update: bool = False
    pool: bool = False
    first_order: bool = False
    by_upstream: bool = False
    is_first: bool = False


class DSTSLayer(nn.Module):
    """A layer of N specialized neurons over C channels.

    Parameters, where the variant has them, M being C or the bottleneck: `scoring_kernel [N, C, C]`,
    `spatial_kernel [N, M, C, 3, 3]`, `temporal_kernel [N, M, C, taps]`, `gate_logits [N, C]`,
    `fusion_kernel [N, C, M]`, `volume_kernel [N, M, C, 3, 3, 3]` (conv3d, fused only from
    a bottleneck). With `shared_neuron`, each is added to `shared_spatial_kernel [M, C, 3, 3]` and
    so on, after multiplication with `own_scale`. With `common_neuron`, `common` is a layer of one
    neuron that every sample goes through beside its own.

    Choice: outputs of a scoring kernel are only ever summed, so with a bottleneck it has one,
    `[N, 1, C]`.
    """

    fixed_gates: Tensor
    impulses: Impulses
    common: DSTSLayer | None

    def __init__(self, channels: int, options: HeadSettings) -> None:
        super().__init__()
        self.channels = channels
        self.num_neurons = options.num_neurons
        self.options = options
        n = options.num_neurons
        c = channels
        m = options.bottleneck or channels
        self.temporal_extent: Extent = (options.temporal_taps, 1, 1)
        self.inner_channels = m
        self.has_fusion = options.specialization != "conv3d" or options.bottleneck is not None
        of_layer = options.norm_statistics == "layer"
        self.common = None
        if options.common_neuron:
            alone = {"num_neurons": 1, "synapse": False}
            alone |= {"common_neuron": False, "shared_neuron": False}
            self.common = DSTSLayer(channels, options.model_copy(update=alone))
        if options.synapse:
            self.scoring_kernel = new_kernel(n, c if options.bottleneck is None else 1, c)
            self.impulses = Impulses(options)
        if options.specialization == "conv3d":
            self._add_kernel("volume", m, c, 3, 3, 3)
            self.volume_norm = NeuronNorm(n, m, of_layer=of_layer)
        else:
            self._add_kernel("spatial", m, c, 3, 3)
            self._add_kernel("temporal", m, c, options.temporal_taps)
        if self.has_fusion:
            self._add_kernel("fusion", c, m)
        if options.common_neuron:  # what is routed starts from nothing
            for name, parameter in self.named_parameters(recurse=False):
                if name.endswith("fusion_kernel"):
                    nn.init.zeros_(parameter)
        if options.specialization == "conv3d":
            return
        self.spatial_norm = NeuronNorm(n, m, of_layer=of_layer)
        self.temporal_norm = NeuronNorm(n, m, of_layer=of_layer)
        if options.specialization == "gated":
            self.gate_logits = nn.Parameter(options.gate_init_std * torch.randn(n, c))
            if options.shared_neuron:
                self.shared_gate_logits = nn.Parameter(options.gate_init_std * torch.randn(c))
        elif options.specialization == "fixed":
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
        of_common = None
        if self.common is not None and noise is not None:
            noise, of_common = noise.split(self.num_neurons)
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
        output = output.flatten(1) if how.pool else output.view(*x.shape[:4], -1)
        if self.common is not None:
            output = output + self.common(x, of_common, how)[0]
        return output, record

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
        if self.options.specialization in ("conv3d", "ungated"):
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
        if self.options.specialization == "conv3d":
            volume = gated_kernels(self.kernel("volume", neurons), None)
            return (Branch(VOLUME, volume, self.volume_norm),)
        gates = self.gates(noise)
        gates = None if gates is None else _take(gates, neurons)
        of_spatial = None if gates is None else 1.0 - gates
        spatial = gated_kernels(self.kernel("spatial", neurons), of_spatial)
        temporal = gated_kernels(self.kernel("temporal", neurons), gates)
        return (
            Branch(SPATIAL, spatial, self.spatial_norm),
            Branch(self.temporal_extent, temporal, self.temporal_norm),
        )

    def fusion(self, neurons: Tensor | None = None) -> Tensor | None:
        """Fusion kernels `[N, C, M]`; None where there is none."""
        return self.kernel("fusion", neurons) if self.has_fusion else None

    def raw_outputs(self, x: Tensor) -> Iterator[tuple[NeuronNorm, Tensor, Tensor]]:
        """Operators' outputs before their norms, with the decisions of test time.

        Yields:
            Per operator its norm, outputs `[B, P, N or 1, M]` (1: of each sample's own neuron) and
            which sample feeds which neuron's statistics, `[B, N]` float64.
        """
        if self.common is not None:
            yield from self.common.raw_outputs(x)
        choice = self.route(x, None, Pass())[0].choice
        branches = self.branches(None)
        if choice is None or self.options.norm_statistics == "batch":
            everyone = torch.ones(
                x.shape[0], self.num_neurons, dtype=torch.float64, device=x.device
            )
            for branch in branches:
                raw = joint_product(x, branch.kernels, branch.extent)
                yield branch.norm, widen(raw), everyone
            return
        x, routing = sort_samples(x, choice, self.num_neurons, self.inner_channels)
        for branch in branches:
            samples = routing.onehot.double()
            if branch.norm.of_layer:
                samples = torch.ones_like(samples)
            raw = routed_product(x, branch.kernels, branch.extent, routing)
            yield branch.norm, widen(raw)[:, :, None], samples

    def _run_chosen(self, x: Tensor, choice: Tensor, how: Pass) -> Tensor:
        """Test time: output `[B, P or 1, C]` of each sample's neuron; in the grouped form no other
        one is touched."""
        neurons = None
        num_neurons = self.num_neurons
        if not is_fixed(x, self.inner_channels):
            neurons, choice = choice.unique(return_inverse=True)
            num_neurons = len(neurons)
        x, routing = sort_samples(x, choice, num_neurons, self.inner_channels)
        branches = self.branches(None, neurons)
        affines = [branch.norm.running_affine(neurons) for branch in branches]
        z = run_frozen(x, branches, affines, routing)
        return routing.unsort(_fuse(z, self.fusion(neurons), routing, how))

    def _run_routed(
        self, x: Tensor, choice: Tensor, logits: Tensor, noise: LayerNoise | None, how: Pass
    ) -> Tensor:
        """Training: output `[B, P or 1, C]` of each sample's neuron, with its gradient."""
        branches = self.branches(noise)
        fusion = self.fusion()
        ordered, routing = sort_samples(x, choice, self.num_neurons, self.inner_channels)
        gated = self.options.specialization == "gated"
        inert = how.by_upstream and how.is_first, how.by_upstream and not gated
        routed = run_routed(ordered, branches, routing, update=how.update, inert=inert)
        z = _fuse(routed.z, fusion, routing, how)
        if self.options.routing_gradient == "selected":
            coefficient = selected_coefficient(one_hot(choice, self.num_neurons, z.dtype), logits)
            return routing.unsort(z) * coefficient.to(z.dtype)[:, None, None]
        soft = logits.softmax(dim=1).to(z.dtype)
        if routing.groups is not None:
            soft = soft[routing.groups.order]
        neurons = _AllNeurons(
            tuple(branch.extent for branch in branches),
            pool=how.pool,
            fused=fusion is not None,
        )
        tensors = [ordered]
        for branch, affine in zip(branches, routed.affines, strict=True):
            tensors += [fold(branch.kernels, affine.scale), affine.shift]
        if fusion is not None:
            tensors.append(fusion)
        z = z + routing_term(soft, z, neurons, *tensors, first_order=how.first_order)
        return routing.unsort(z)

    def _run_jointly(
        self, x: Tensor, weights: Tensor, noise: LayerNoise | None, how: Pass
    ) -> Tensor:
        """Outputs `[B, P or 1, C]` of all neurons, summed with `weights [B, N]`."""
        fusion = self.fusion()
        z = run_joint(x, self.branches(noise), training=self.training, update=how.update)
        if how.pool:
            z = z.mean(dim=1, keepdim=True)
        z = z * weights.to(z.dtype)[:, None, :, None]
        return z.sum(dim=2) if fusion is None else z.flatten(2) @ _joined_fusion(fusion)


def _fuse(z: Tensor, fusion: Tensor | None, routing: Routing, how: Pass) -> Tensor:
    """Pool `z [B, P, C]` where wanted, then fuse each sample by its own neuron."""
    if how.pool:
        z = z.mean(dim=1, keepdim=True)
    if fusion is None:
        return z
    inert = False, how.by_upstream
    return routed_product(z[:, :, None, None], fusion[:, :, None], POINT, routing, inert)


def _take(values: Tensor, neurons: Tensor | None) -> Tensor:
    return values if neurons is None else values[neurons]
