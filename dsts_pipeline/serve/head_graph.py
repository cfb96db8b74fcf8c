"""The test-time head as one graph without branches on data: what exporters can trace.

Enters: a trained head. Leaves: a module that takes maps `[B, C, T, H, W]` and gives logits
`[B, K]` and, where samples are routed, the chosen neurons `[B, L]`. The choice is a gather: each
sample takes its own neuron's kernels out of all, then one batched product per operator joins them.
Input channels that the gates zeroed are cut, as in `CompiledHead`, whose tensors these are.

Few operations, and those that any runtime has: channels are cut as rows of `[C, P]`, neighbours
are gathered as rows of `[P, C]`, and the rest are batched products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsts_pipeline.head import CompiledHead, DSTSHead, compile_head
from dsts_pipeline.head.compiled import CompiledLayer, CompiledOperator
from dsts_pipeline.head.neurons import Grid, neighbour_positions


def as_exportable(head: nn.Module) -> ExportableHead | PlainHead:
    """The test-time form of `head` as a graph that can be exported; `head` stays as it is.

    Examples:
        >>> head = DSTSHead(8, 3, num_neurons=2, num_layers=1, width=4).eval()
        >>> logits, routing = as_exportable(head)(torch.zeros(4, 8, 2, 3, 3))
        >>> logits.shape, routing.shape
        (torch.Size([4, 3]), torch.Size([4, 1]))
    """
    exportable = ExportableHead(head) if isinstance(head, DSTSHead) else PlainHead(head)
    return exportable.eval().requires_grad_(False)


class ExportableHead(nn.Module):
    """A `DSTSHead` at test time.

    Attributes:
        output_names: "logits", and "routing" where every layer chooses.
    """

    def __init__(self, head: DSTSHead) -> None:
        super().__init__()
        compiled: CompiledHead = compile_head(head)
        frame = compiled.frame
        self.project_in = frame.project_in
        self.frame = frame  # readout, skip connection, classifier
        self.layers = nn.ModuleList()
        for layer in compiled.layers:
            assert isinstance(layer, CompiledLayer)
            self.layers.append(ExportableLayer(layer))
        routed = len(self.layers) > 0 and all(layer.synapse for layer in compiled.layers)
        self.output_names = ("logits", "routing") if routed else ("logits",)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits `[B, K]` of `x [B, C, T, H, W]`, and the chosen neurons `[B, L]` if there are."""
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2)
        hidden = start = x if self.project_in is None else torch.matmul(self.project_in.weight, x)
        end = None
        choices = []
        for number, layer in enumerate(self.layers, start=1):
            pools = number == len(self.layers) and self.frame.pooler is None
            output, choice = layer(hidden, grid, pool=pools)
            choices.append(choice)
            if self.frame.layer_residual:
                output = output + (hidden.mean(dim=2) if pools else hidden)
            hidden = end = output
        logits = self.frame.classifier(self._read(x, grid, start, end))
        if "routing" not in self.output_names:
            return (logits,)
        return logits, torch.stack(choices, dim=1)

    def _read(self, x: Tensor, grid: Grid, start: Tensor, end: Tensor | None) -> Tensor:
        """As `DSTSHead.read`, of maps `[B, C, P]`."""
        if self.frame.pooler is None:
            return self.frame.leave(x.mean(dim=2), start.mean(dim=2), end)
        end = None if end is None else end.transpose(1, 2)
        tokens = self.frame.leave(x.transpose(1, 2), start.transpose(1, 2), end)
        return self.frame.pooler(tokens, grid)


class ExportableLayer(nn.Module):
    """Scores, then each sample's own neuron; or all neurons' mean without synapse."""

    scoring: Tensor
    offset: Tensor
    fusion: Tensor | None

    def __init__(self, layer: CompiledLayer) -> None:
        super().__init__()
        self.synapse = layer.synapse
        self.num_neurons = layer.num_neurons
        if self.synapse:
            self.register_buffer("scoring", layer.scoring.clone())
            self.register_buffer("offset", layer.offset.clone())
        self.common = None if layer.common is None else ExportableLayer(layer.common)
        self.operators = nn.ModuleList()
        for operator in layer.operators:
            assert isinstance(operator, CompiledOperator)
            self.operators.append(ExportableOperator(operator))
        fusion = None if layer.fusion is None else layer.fusion.transpose(1, 2).contiguous()
        self.register_buffer("fusion", fusion)  # [N, C_in, C_out]

    def choose(self, x: Tensor) -> Tensor:
        """Neuron `[B]` of each sample of `x [B, C, P]`."""
        return (x.mean(dim=2) @ self.scoring + self.offset).argmax(dim=1)

    def run(self, x: Tensor, grid: Grid, choice: Tensor | int, *, pool: bool) -> Tensor:
        """Output `[B, C, P]`, or `[B, C]` averaged over positions."""
        first, *others = self.operators
        z = first(x, grid, choice)
        for operator in others:
            z = z + operator(x, grid, choice)
        if pool:
            z = z.mean(dim=1, keepdim=True)
        if self.fusion is not None:
            z = torch.matmul(z, self.fusion[choice])
        return z.squeeze(1) if pool else z.transpose(1, 2)

    def forward(self, x: Tensor, grid: Grid, *, pool: bool) -> tuple[Tensor, Tensor | None]:
        """The layer's output and the choice `[B]` (None without synapse)."""
        choice = None
        if self.synapse:
            choice = self.choose(x)
            output = self.run(x, grid, choice, pool=pool)
        else:
            outputs = [self.run(x, grid, neuron, pool=pool) for neuron in range(self.num_neurons)]
            output = torch.stack(outputs).mean(dim=0)
        if self.common is not None:
            output = output + self.common(x, grid, pool=pool)[0]
        return output, choice


class ExportableOperator(nn.Module):
    """`relu(kernel * x + bias)`, each sample with the kernel of its own neuron."""

    channels: Tensor
    kernels: Tensor
    bias: Tensor

    def __init__(self, operator: CompiledOperator) -> None:
        super().__init__()
        self.extent = operator.extent
        self.takes_all = operator.takes_all
        self.register_buffer("channels", operator.channels.clone())
        self.register_buffer(
            "kernels", operator.kernels.flatten(2).mT.contiguous()
        )  # [N, taps * U, C]
        self.register_buffer("bias", operator.bias.clone())

    def forward(self, x: Tensor, grid: Grid, choice: Tensor | int) -> Tensor:
        """`[B, P, C]` of `x [B, C, P]`, whose positions lie on `grid`.

        Args:
            choice: Neuron `[B]` of each sample, or one neuron for all.
        """
        bias = self.bias[choice].unsqueeze(-2)
        if self.kernels.shape[1] == 0:  # no neuron uses this operator: a norm of nothing is left
            return bias.expand(x.shape[0], x.shape[2], -1).relu()
        rows = self._cut(x, choice).transpose(1, 2)  # [B, P, U]
        rows = nn.functional.pad(rows, (0, 0, 0, 1))  # one row of zeros for what is outside
        neighbours = torch.tensor(neighbour_positions(grid, self.extent), device=x.device)
        columns = rows.index_select(1, neighbours).reshape(x.shape[0], x.shape[2], -1)
        return (torch.matmul(columns, self.kernels[choice]) + bias).relu()

    def _cut(self, x: Tensor, choice: Tensor | int) -> Tensor:
        """The channels that the neuron uses, `[B, U, P]`."""
        if self.takes_all:
            return x
        if isinstance(choice, int):
            return x.index_select(1, self.channels[choice])
        starts = torch.arange(x.shape[0], device=x.device) * x.shape[1]
        rows = (self.channels[choice] + starts[:, None]).flatten()
        return x.flatten(0, 1).index_select(0, rows).unflatten(0, (-1, self.channels.shape[1]))


class PlainHead(nn.Module):
    """A head without routing (linear probe, attentive probe, one block), giving a tuple, too."""

    output_names = ("logits",)

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits `[B, K]` of `x [B, C, T, H, W]`."""
        return (self.head(x),)


class WholeModel(nn.Module):
    """Backbone and head: frames uint8 `[B, T, H, W, 3]` to logits and routing."""

    def __init__(self, backbone: nn.Module, head: ExportableHead | PlainHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.output_names = head.output_names

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """What the head gives for the backbone's map of `frames`."""
        return self.head(self.backbone(frames))


class JoiningBackbone(nn.Module):
    """Frames uint8 `[B, S T, H, W, 3]` of S views to one map `[B, C, S T', H', W']`."""

    def __init__(self, backbone: nn.Module, num_joined: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_joined = num_joined

    def forward(self, frames: Tensor) -> Tensor:
        """The maps of the views, one after another along time."""
        steps = frames.shape[1] // self.num_joined
        maps = self.backbone(frames.reshape(-1, steps, *frames.shape[2:]))
        separate = maps.unflatten(0, (-1, self.num_joined)).transpose(1, 2)
        return separate.flatten(2, 3)
