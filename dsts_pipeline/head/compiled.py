"""A head frozen for test time: gates cut channels out, norms are folded, nothing else is kept.

Enters: a `DSTSHead`. Leaves: a `CompiledHead` with the same logits within float tolerance. At test
time a gate sends its channel to one operator for good, so the other operator's kernel loses that
input channel; a norm with running statistics is an affine map, folded into kernel and bias;
scoring kernels are summed to one vector per neuron.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dsts_pipeline.head.convolution import Extent, neighbour_columns
from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.layer import DSTSLayer


class CompiledOperator(nn.Module):
    """`relu(kernel * x + bias)` of one neuron on the input channels that it uses."""

    channels: Tensor
    matrix: Tensor
    bias: Tensor

    def __init__(
        self, extent: Extent, kernels: Tensor, scale: Tensor, shift: Tensor, used: Tensor | None
    ) -> None:
        super().__init__()
        self.extent = extent
        matrix = kernels.unflatten(0, (-1, scale.shape[0])) * scale  # [taps, C_in, C_out]
        self.all_channels = used is None or bool(used.all())
        channels = torch.arange(len(scale)) if used is None else used.nonzero()[:, 0].cpu()
        self.register_buffer("channels", channels.to(matrix.device))
        self.register_buffer("matrix", matrix[:, self.channels].flatten(0, 1).contiguous())
        self.register_buffer("bias", shift.clone())

    def forward(self, x: Tensor) -> Tensor:
        """`[B * P, C]` of `x [B, T, H, W, C]`."""
        if not self.matrix.shape[0]:
            return self.bias.relu().expand(x.shape[:4].numel(), -1)
        if not self.all_channels:
            x = x.index_select(4, self.channels)
        columns = neighbour_columns(x, self.extent).flatten(0, 3)
        return torch.addmm(self.bias, columns, self.matrix).relu_()


class CompiledLayer(nn.Module):
    """Scores, then each sample's own neuron."""

    scoring: Tensor
    offset: Tensor
    fusion: Tensor | None

    def __init__(self, layer: DSTSLayer) -> None:
        super().__init__()
        self.synapse, self.num_neurons = layer.options.synapse, layer.num_neurons
        if self.synapse:
            scoring, offset = _folded_scoring(layer)
            self.register_buffer("scoring", scoring)
            self.register_buffer("offset", offset)
        gates, fusion = layer.gates(None), layer.fusion()
        branches = layer.branches(None)
        self.neurons = nn.ModuleList()
        for neuron in range(layer.num_neurons):
            operators = nn.ModuleList()
            for branch, keep in zip(branches, (0.0, 1.0), strict=False):
                scale, shift = branch.norm.running_affine()
                used = None if gates is None else gates[neuron] == keep
                arguments = (branch.kernels[neuron], scale[neuron], shift[neuron], used)
                operators.append(CompiledOperator(branch.extent, *arguments))
            self.neurons.append(operators)
        self.register_buffer("fusion", None if fusion is None else fusion.contiguous())

    def choose(self, x: Tensor) -> Tensor:
        """Neuron `[B]` of each sample of `x [B, T, H, W, C]`."""
        return (x.mean(dim=(1, 2, 3)) @ self.scoring + self.offset).argmax(dim=1)

    def run(self, x: Tensor, neuron: int, *, pool: bool) -> Tensor:
        """Output of one neuron: `[B, T, H, W, C]`, or `[B, C]` averaged over positions."""
        operators = self.neurons[neuron]
        assert isinstance(operators, nn.ModuleList)
        z = sum(operator(x) for operator in operators)
        if pool:
            z = z.view(x.shape[0], -1, z.shape[-1]).mean(dim=1)
        if self.fusion is not None:
            z = z @ self.fusion[neuron]
        return z if pool else z.view(*x.shape[:4], -1)

    def forward(self, x: Tensor, *, pool: bool) -> Tensor:
        """The layer's output, each sample from its own neuron, or all neurons' mean."""
        if not self.synapse:
            outputs = [self.run(x, neuron, pool=pool) for neuron in range(self.num_neurons)]
            return torch.stack(outputs).mean(dim=0)
        choice = self.choose(x)
        if x.shape[0] == 1:
            return self.run(x, int(choice), pool=pool)
        output = x.new_empty(x.shape[0], x.shape[4]) if pool else torch.empty_like(x)
        for neuron in choice.unique().tolist():
            rows = (choice == neuron).nonzero()[:, 0]
            output[rows] = self.run(x[rows], neuron, pool=pool)
        return output


class CompiledHead(nn.Module):
    """What `compile_head` makes; takes maps `[B, C, T, H, W]`, gives logits `[B, K]`."""

    def __init__(self, head: DSTSHead) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CompiledLayer(layer) for layer in head.dsts_layers())
        self.frame = copy.deepcopy(head)  # projections, skip, classifier
        self.frame.layers = nn.ModuleList()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`."""
        if not self.layers:
            return self.frame(x)
        self.frame.check_input(x)
        hidden = start = self.frame.enter(x)
        for layer in self.layers[:-1]:
            output = layer(hidden, pool=False)
            hidden = hidden + output if self.frame.layer_residual else output
        pooled = self.layers[-1](hidden, pool=True)
        if self.frame.layer_residual:
            pooled = pooled + hidden.mean(dim=(1, 2, 3))
        return self.frame.classifier(self.frame.leave(x, start, pooled))


@torch.no_grad()
def compile_head(head: DSTSHead) -> CompiledHead:
    """The test-time form of `head`, which stays as it is.

    Example:
        >>> head = DSTSHead(8, 3, num_neurons=2, num_layers=1).eval()
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
