"""Statistics of all norms, recomputed with the decisions of test time.

Enters: a head and a way to go through training maps several times. Leaves: the head with running
statistics that are those of the whole passes, layer by layer, each layer fed by the already
recalibrated ones before it.

Deviation: not in the paper. Training draws another gate pattern in every pass while test time
uses one, which the running statistics of training never described. Where a head's gates have not
hardened this decides whether it works at all. Heads with PyTorch's own norms get the same care, for
the moving averages of a training describe mixed maps where it mixes, and lag behind the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.layer import DSTSLayer
from dsts_pipeline.head.norms import NeuronNorm
from dsts_pipeline.head.routing import Impulses

MapPasses = Callable[[], Iterable[Tensor]]
Consumer = Callable[[Tensor], None]


class _Moments:
    """Count, sum and sum of squares per row, in float64."""

    def __init__(self, like: Tensor) -> None:
        self.sum = torch.zeros_like(like, dtype=torch.float64)
        self.square = torch.zeros_like(self.sum)
        self.count = torch.zeros(like.shape[0], dtype=torch.float64, device=like.device)

    def add(self, total: Tensor, square: Tensor, count: Tensor) -> None:
        self.sum += total
        self.square += square
        self.count += count

    def write(self, mean: Tensor, var: Tensor) -> None:
        """Fill `mean` and unbiased `var` of the rows that got at least two values."""
        shape = (-1,) + (1,) * (self.sum.dim() - 1)
        count = self.count.view(shape)
        average = self.sum / count.clamp(min=1.0)
        unbiased = (self.square - count * average.square()) / (count - 1.0).clamp(min=1.0)
        enough = (count >= 2).expand_as(mean)
        mean.copy_(torch.where(enough, average.to(mean), mean))
        var.copy_(torch.where(enough, unbiased.clamp(min=0.0).to(var), var))


def recalibrate(head: nn.Module, passes: MapPasses) -> None:
    """Recompute every running statistic of `head` without noise.

    A neuron to which nothing is routed keeps the statistics that it has. A head without norms is
    left as it is.

    Args:
        head: A DSTS head, or another one, whose norms are PyTorch's.
        passes: Called up to `num_recalibration_passes` times; each call gives batches of maps
            `[B, C, T, H, W]`, always the same clips.
    """
    for consume in recalibration_passes(head):
        for maps in passes():
            consume(maps)


def num_recalibration_passes(head: nn.Module) -> int:
    """How often `recalibrate` goes through the maps, at most."""
    if isinstance(head, DSTSHead):
        return 2 * len(list(head.dsts_layers()))
    return len(_norms_of(head))


def recalibration_passes(head: nn.Module) -> Iterator[Consumer]:
    """What `recalibrate` does, pass by pass: each function given wants the maps of one pass.

    The statistics of a pass are in place when the next one is asked for.
    """
    was_training = head.training
    head.eval()
    try:
        if isinstance(head, DSTSHead):
            yield from _passes_of_layers(head)
        elif norms := _norms_of(head):
            yield from _passes_of_norms(head, norms)
    finally:
        head.train(was_training)


def _passes_of_layers(head: DSTSHead) -> Iterator[Consumer]:
    for position, layer in enumerate(head.dsts_layers()):
        if layer.options.synapse and layer.options.impulse == "standardized":
            impulses = layer.impulses
            assert isinstance(impulses, Impulses)
            moments = _Moments(impulses.running_mean)
            yield partial(_add_impulses, moments, head, position, layer)
            moments.write(impulses.running_mean, impulses.running_var)
        collected: dict[NeuronNorm, _Moments] = {}
        yield partial(_add_outputs, collected, head, position, layer)
        for norm, moments in collected.items():
            moments.write(norm.running_mean, norm.running_var)


def _norms_of(head: nn.Module) -> list[_BatchNorm]:
    """Of a head that is no DSTS head: those with running statistics."""
    norms = (one for one in head.modules() if isinstance(one, _BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None]


def _passes_of_norms(head: nn.Module, norms: list[_BatchNorm]) -> Iterator[Consumer]:
    """As many passes as there are norms: after each, one more in a row of them has the moments of
    what it is fed by norms that have theirs, in whatever order the head runs them.

    The average of the batches' own statistics, which `torch.optim.swa_utils.update_bn` takes, lacks
    the variance between batches: a tenth of it where clips come class by class.
    """
    for _ in norms:
        collected: dict[nn.Module, _Moments] = {}
        for norm in norms:
            assert norm.running_mean is not None
            collected[norm] = _Moments(norm.running_mean)
        yield partial(_add_inputs, collected, head)
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            collected[norm].write(norm.running_mean, norm.running_var)


@torch.no_grad()
def _add_inputs(collected: Mapping[nn.Module, _Moments], head: nn.Module, maps: Tensor) -> None:
    def add(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        (z,) = inputs
        others = [dim for dim in range(z.dim()) if dim != 1]
        var, mean = torch.var_mean(z, dim=others, correction=0)
        var, mean = var.double(), mean.double()
        count = torch.full_like(collected[norm].count, z.numel() / z.shape[1])
        collected[norm].add(count * mean, count * (var + mean.square()), count)

    handles = [norm.register_forward_pre_hook(add) for norm in collected]
    try:
        head(maps)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _add_impulses(
    moments: _Moments, head: DSTSHead, position: int, layer: DSTSLayer, maps: Tensor
) -> None:
    raw = layer.impulses.measure(head.layer_input(maps, position), layer.scoring_kernel).double()
    count = torch.full_like(moments.count, len(raw))
    moments.add(raw.sum(dim=0), raw.square().sum(dim=0), count)


@torch.no_grad()
def _add_outputs(
    collected: dict[NeuronNorm, _Moments],
    head: DSTSHead,
    position: int,
    layer: DSTSLayer,
    maps: Tensor,
) -> None:
    x = head.layer_input(maps, position)
    for norm, z, samples in layer.raw_outputs(x):
        moments = collected.setdefault(norm, _Moments(norm.running_mean))
        z = z.double()
        moments.add(
            torch.einsum("bn,bnc->nc", samples, z.sum(dim=1).expand(-1, samples.shape[1], -1)),
            torch.einsum(
                "bn,bnc->nc", samples, z.square().sum(dim=1).expand(-1, samples.shape[1], -1)
            ),
            samples.sum(dim=0) * z.shape[1],
        )
