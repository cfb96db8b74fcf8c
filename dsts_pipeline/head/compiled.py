"""A head frozen for test time: gates cut channels out, norms are folded, nothing else is kept.

Enters: a `DSTSHead`. Leaves: a `CompiledHead` with the same logits within float tolerance. At test
time a gate sends its channel to one operator for good, so the other operator's kernel loses that
input channel; a norm with running statistics is an affine map, folded into kernel and bias;
scoring kernels are summed to one vector per neuron.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor, nn

from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.layer import DSTSLayer
from dsts_pipeline.head.neurons import (
    Extent,
    columns_of,
    convolve,
    fold,
    group_samples,
    is_fixed,
)
from dsts_pipeline.head.norms import Affine

Spans = list[tuple[int, slice]]
"""Neurons in use and the samples, sorted by neuron, that go to each."""


class CompiledOperator(nn.Module):
    """`relu(kernel * x + bias)` of all neurons, each on the input channels that it uses.

    `channels [N, U]` names them; U is the most that any neuron uses, a neuron with fewer has zeros
    in its kernel; `kernels [N, C, taps, U]`, `bias [N, C]`.
    """

    channels: Tensor
    kernels: Tensor
    bias: Tensor

    def __init__(self, extent: Extent, kernels: Tensor, affine: Affine, used: Tensor) -> None:
        super().__init__()
        self.extent = extent
        num_neurons, num_channels = used.shape
        most = int(used.sum(dim=1).max())
        channels = used.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        self.takes_all = most == num_channels
        if self.takes_all:
            channels = torch.arange(num_channels, device=used.device).expand(num_neurons, -1)
        index = channels[:, None, None].expand(-1, *kernels.shape[1:3], -1)
        self.register_buffer("channels", channels.contiguous())
        self.register_buffer("kernels", fold(kernels, affine.scale).gather(3, index))
        self.register_buffer("bias", affine.shift.clone())

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        """`[B, P, C]` of samples `x [B, T, H, W, C]` sorted by neuron."""
        parts = []
        for neuron, span in spans:
            part = x[span]
            bias = self.bias[neuron]
            if not self.channels.shape[1]:
                parts.append(bias.expand(len(part), part[0, ..., 0].numel(), -1))
                continue
            if not self.takes_all:
                part = part.index_select(4, self.channels[neuron])
            parts.append(convolve(part, self.kernels[neuron], self.extent, bias))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).relu()

    def run_fixed(self, x: Tensor, choice: Tensor) -> Tensor:
        """`[B, P, C]` of `x`, each sample by its own neuron `choice [B]`, by the fixed form."""
        if not self.takes_all:
            index = self.channels[choice][:, None, None, None, :]
            x = x.gather(4, index.expand(*x.shape[:4], -1))
        own = self.kernels[choice].flatten(2).transpose(1, 2)
        bias = self.bias[choice][:, None]
        return torch.baddbmm(bias, columns_of(x, self.extent), own).relu_()


class CompiledLayer(nn.Module):
    """Scores, then each sample's own neuron."""

    scoring: Tensor
    offset: Tensor
    fusion: Tensor | None
    common: CompiledLayer | None

    def __init__(self, layer: DSTSLayer) -> None:
        super().__init__()
        self.synapse = layer.options.synapse
        self.num_neurons = layer.num_neurons
        self.inner_channels = layer.inner_channels
        self.common = None if layer.common is None else CompiledLayer(layer.common)
        if self.synapse:
            scoring, offset = _folded_scoring(layer)
            self.register_buffer("scoring", scoring)
            self.register_buffer("offset", offset)
        gates = layer.gates(None)
        fusion = layer.fusion()
        branches = layer.branches(None)
        self.operators = nn.ModuleList()
        for branch, side in zip(branches, (0.0, 1.0), strict=False):
            everything = torch.ones(layer.num_neurons, layer.channels, dtype=torch.bool)
            used = everything.to(branch.kernels.device) if gates is None else gates == side
            affine = branch.norm.running_affine()
            self.operators.append(CompiledOperator(branch.extent, branch.kernels, affine, used))
        self.register_buffer("fusion", None if fusion is None else fusion.contiguous())

    def choose(self, x: Tensor) -> Tensor:
        """Neuron `[B]` of each sample of `x [B, T, H, W, C]`."""
        return (x.mean(dim=(1, 2, 3)) @ self.scoring + self.offset).argmax(dim=1)

    def run(self, x: Tensor, spans: Spans, *, pool: bool) -> Tensor:
        """Output of samples sorted by neuron: `[B, T, H, W, C]`, or `[B, C]` averaged."""
        z = self._sum([operator(x, spans) for operator in self.operators], pool=pool)
        if self.fusion is not None:
            z = torch.cat([z[span] @ self.fusion[neuron].t() for neuron, span in spans])
        return z[:, 0] if pool else z.view(x.shape)

    def run_fixed(self, x: Tensor, choice: Tensor, *, pool: bool) -> Tensor:
        """The same of samples in any order, each by its own neuron `choice [B]`."""
        z = self._sum([operator.run_fixed(x, choice) for operator in self._operators()], pool=pool)
        if self.fusion is not None:
            z = torch.bmm(z, self.fusion[choice].transpose(1, 2))
        return z[:, 0] if pool else z.view(x.shape)

    def _operators(self) -> Iterator[CompiledOperator]:
        for operator in self.operators:
            assert isinstance(operator, CompiledOperator)
            yield operator

    def _sum(self, parts: list[Tensor], *, pool: bool) -> Tensor:
        z = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
        return z.mean(dim=1, keepdim=True) if pool else z

    def forward(self, x: Tensor, *, pool: bool, choices: list[Tensor] | None = None) -> Tensor:
        """The layer's output, each sample from its own neuron, or all neurons' mean.

        The neurons `[B]` that were chosen, if any, are added to `choices`.
        """
        output = self._run_own(x, choices, pool=pool)
        return output if self.common is None else output + self.common(x, pool=pool)

    def _run_own(self, x: Tensor, choices: list[Tensor] | None, *, pool: bool) -> Tensor:
        everyone = slice(0, len(x))
        if not self.synapse:
            runs = [self.run(x, [(n, everyone)], pool=pool) for n in range(self.num_neurons)]
            return torch.stack(runs).mean(dim=0)
        choice = self.choose(x)
        if choices is not None:
            choices.append(choice)
        if is_fixed(x, self.inner_channels):
            return self.run_fixed(x, choice, pool=pool)
        if len(x) == 1:
            return self.run(x, [(int(choice), everyone)], pool=pool)
        groups = group_samples(choice, self.num_neurons)
        ends = list(accumulate(groups.counts, initial=0))
        spans = [(n, slice(ends[n], ends[n + 1])) for n, count in enumerate(groups.counts) if count]
        return self.run(x[groups.order], spans, pool=pool)[groups.inverse]


class CompiledHead(nn.Module):
    """What `compile_head` makes; takes maps `[B, C, T, H, W]`, gives logits `[B, K]`."""

    def __init__(self, head: DSTSHead) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CompiledLayer(layer) for layer in head.dsts_layers())
        self.frame = copy.deepcopy(head)  # projections, skip, classifier
        self.frame.layers = nn.ModuleList()

    @torch.no_grad()
    def forward(self, x: Tensor, *, choices: list[Tensor] | None = None) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`; see `CompiledLayer.forward` for `choices`."""
        self.frame.check_input(x)
        hidden = start = self.frame.enter(x)
        end = None
        for number, layer in enumerate(self.layers, start=1):
            pools = number == len(self.layers) and self.frame.pooler is None
            output = layer(hidden, pool=pools, choices=choices)
            if self.frame.layer_residual:
                output = output + (hidden.mean(dim=(1, 2, 3)) if pools else hidden)
            hidden = end = output
        return self.frame.classify(self.frame.read(x, start, end))


@torch.no_grad()
def compile_head(head: DSTSHead) -> CompiledHead:
    """The test-time form of `head`, which stays as it is.

    Examples:
        >>> head = DSTSHead(8, 3, num_neurons=2, num_layers=1, width=4).eval()
        >>> compile_head(head)(torch.zeros(4, 8, 2, 3, 3)).shape
        torch.Size([4, 3])
    """
    return CompiledHead(head).eval().requires_grad_(False)


def _folded_scoring(layer: DSTSLayer) -> tuple[Tensor, Tensor]:
    """Scoring vectors `[C, N]` on the averaged map and offsets `[N]` that rank like the impulses.

    A factor that all neurons share does not change the ranking and is left out.
    """
    vectors = layer.scoring_kernel.sum(dim=1).t()
    impulses = layer.impulses
    if impulses.kind != "standardized":
        return vectors.contiguous(), torch.zeros_like(vectors[0])
    scale = torch.rsqrt(impulses.running_var + impulses.eps).to(vectors)
    return (vectors * scale).contiguous(), -impulses.running_mean.to(vectors) * scale
