"""Batch norms of a layer's N neurons, each fed only by the samples routed to it.

Enters: outputs of an operator and the routing. Leaves: statistics `[N, C]` and the normalised
outputs. At test time a neuron sees only its own samples, so its statistics describe those. Rules,
where the paper is silent (`Choice:` all three):
- A neuron that got samples is normalised by their statistics, and so are the outputs of it that
  the dense estimator looks at for samples that went elsewhere.
- A neuron that got fewer than two values per channel is normalised by its running statistics,
  which then stay as they are.
- With statistics of the layer, all samples feed all neurons, each with its own neuron's output;
  scale and shift remain each neuron's. Deviation: a neuron is not normalised by what it sees.
- Running statistics move with `momentum` and the unbiased variance, like torch's batch norm.
Where several processes train together, statistics are those of their joined batch, derivatives of
every order included: `sum_across` sums over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# ---- sums over processes -------------------------------------------------------------------------
#
# `sum_across` sums over processes and can be differentiated; None where there is one process.

SumAcross = Callable[[Tensor], Tensor]


def total_of(values: Tensor, sum_across: SumAcross | None) -> Tensor:
    """`values` summed over processes."""
    return values if sum_across is None else sum_across(values)


def average_of(mean: Tensor, num_samples: int, sum_across: SumAcross | None) -> Tensor:
    """Mean over all processes' samples, given this process's `mean` over `num_samples`."""
    if sum_across is None:
        return mean
    total = sum_across(mean.new_full((), float(num_samples)))
    return sum_across(mean * (num_samples / total))


# ---- the norms -----------------------------------------------------------------------------------


class Affine(NamedTuple):
    """A norm as `z * scale + shift`, both `[N, C]`."""

    scale: Tensor
    shift: Tensor


class NeuronNorm(nn.Module):
    """N batch norms over C channels: `weight`, `bias`, `running_mean`, `running_var` `[N, C]`."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_neurons: int,
        channels: int,
        *,
        of_layer: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.of_layer = of_layer
        self.momentum = momentum
        self.eps = eps
        self.sum_across: SumAcross | None = None
        self.weight = nn.Parameter(torch.ones(num_neurons, channels))
        self.bias = nn.Parameter(torch.zeros(num_neurons, channels))
        self.register_buffer("running_mean", torch.zeros(num_neurons, channels))
        self.register_buffer("running_var", torch.ones(num_neurons, channels))

    def running_affine(self, neurons: Tensor | None = None) -> Affine:
        """The norm of test time, from the running statistics, of all neurons or of `neurons`."""
        weight, bias, mean, var = (
            tensor if neurons is None else tensor[neurons]
            for tensor in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * torch.rsqrt(var + self.eps)
        return Affine(scale, bias - mean * scale)

    def joint_affine(self, z: Tensor, *, update: bool) -> Affine:
        """The norm of a training pass, every neuron's statistics from the whole batch.

        Args:
            z: `[B, P, N, C]`.
            update: Whether the running statistics move.
        """
        mean = average_of(z.mean(dim=(0, 1)), len(z), self.sum_across)
        var = average_of((z - mean).square().mean(dim=(0, 1)), len(z), self.sum_across)
        own_values = z.new_full((z.shape[2],), z.shape[0] * z.shape[1])
        num_values = total_of(own_values, self.sum_across)
        enough = (num_values >= 2)[:, None]
        mean = torch.where(enough, mean, self.running_mean.to(z.dtype))
        var = torch.where(enough, var, self.running_var.to(z.dtype))
        if update:
            _update([self], mean.detach(), var.detach(), num_values, enough)
        return _affine([self], mean, var)


class BatchNorm3d(nn.BatchNorm3d):
    """Torch's, for heads without neurons: one value per channel, of one clip of one position, is
    normalised by the running statistics, as by a `NeuronNorm`, where torch raises ValueError."""

    def forward(self, input: Tensor) -> Tensor:
        """`input [B, C, T, H, W]` normalised."""
        if input[:, 0].numel() > 1:
            return super().forward(input)
        running = self.running_mean, self.running_var
        return nn.functional.batch_norm(input, *running, self.weight, self.bias, eps=self.eps)


# ---- norms side by side --------------------------------------------------------------------------


def routed_affine(
    norms: Sequence[NeuronNorm], z: Tensor, onehot: Tensor, *, update: bool
) -> Affine:
    """The norms of a training pass, each neuron's statistics from the samples that feed it.

    Mean and variance are taken per sample, in one reading of the map, and joined per neuron by the
    law of total variance, which is as stable as a second reading.

    Args:
        norms: Of one layer; they differ in nothing but their tensors.
        z: `[B, P, C']`, P positions, each sample from its own neuron, the norms' channels side by
            side.
        onehot: `[B, N]` neuron of each sample.
        update: Whether the running statistics move.

    Returns:
        Scale and shift `[N, C']`.
    """
    one = norms[0]
    samples = torch.ones_like(onehot) if one.of_layer else onehot
    counts = total_of(samples.sum(dim=0), one.sum_across)
    share = (samples / counts.clamp(min=1.0)).t()  # [N, B]
    num_values = counts * z.shape[1]
    enough = (num_values >= 2)[:, None]
    of_samples, spread = sample_moments(z)
    running_mean = _beside([norm.running_mean for norm in norms]).to(z.dtype)
    mean = torch.where(enough, total_of(share @ of_samples, one.sum_across), running_mean)
    spread = spread + (of_samples - onehot @ mean).square()
    running_var = _beside([norm.running_var for norm in norms]).to(z.dtype)
    var = torch.where(enough, total_of(share @ spread, one.sum_across), running_var)
    if update:
        _update(norms, mean.detach(), var.detach(), num_values, enough)
    return _affine(norms, mean, var)


@torch.no_grad()
def _update(
    norms: Sequence[NeuronNorm], mean: Tensor, var: Tensor, num_values: Tensor, enough: Tensor
) -> None:
    """Move running statistics towards `mean` and biased `var [N, C']` where there was enough."""
    unbias = (num_values / (num_values - 1.0).clamp(min=1.0))[:, None]
    step = norms[0].momentum * enough.to(mean.dtype)
    for new, name in ((mean, "running_mean"), (var * unbias, "running_var")):
        places = [getattr(norm, name) for norm in norms]
        before = _beside(places).to(new.dtype)
        moved = torch.addcmul(before, step, new - before)
        for place, part in zip(places, moved.chunk(len(norms), dim=1), strict=True):
            place.copy_(part)


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _affine(norms: Sequence[NeuronNorm], mean: Tensor, var: Tensor) -> Affine:
    scale = _beside([norm.weight for norm in norms]) * torch.rsqrt(var + norms[0].eps)
    return Affine(scale, _beside([norm.bias for norm in norms]) - mean * scale)


class _SampleMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.device.type == "cpu":  # var_mean over an outer dimension is slow there
            mean = z.mean(dim=1)
            var = (z - mean[:, None]).square_().mean(dim=1)
        else:
            var, mean = torch.var_mean(z, dim=1, correction=0)
        ctx.save_for_backward(z, mean)
        ctx.save_for_forward(z, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> Tensor:
        z, mean = ctx.saved_tensors
        slope = of_var * (2.0 / z.shape[1])
        start = of_mean / z.shape[1] - slope * mean
        return torch.addcmul(start[:, None], z, slope[:, None])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        z, mean = ctx.saved_tensors
        return tangent.mean(dim=1), 2.0 * ((z - mean[:, None]) * tangent).mean(dim=1)


def sample_moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance `[B, C]` over P of `z [B, P, C]`."""
    if torch.compiler.is_compiling():
        var, mean = torch.var_mean(z, dim=1, correction=0)
        return mean, var
    return _SampleMoments.apply(z)
