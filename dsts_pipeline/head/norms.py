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

from collections.abc import Callable
from typing import NamedTuple

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
    total = sum_across(mean.new_tensor(float(num_samples)))
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

    def routed_affine(self, z: Tensor, choice: Tensor, *, update: bool) -> Affine:
        """The norm of a training pass, each neuron's statistics from the samples that feed it.

        Args:
            z: `[B, P, C]`, P positions, each sample from its own neuron.
            choice: `[B]` neuron of each sample.
            update: Whether the running statistics move.
        """
        samples = self.fed_by(choice).to(z.dtype)
        counts = total_of(samples.sum(dim=0), self.sum_across)
        share = (samples / counts.clamp(min=1.0)).t()  # [N, B]
        enough = (counts * z.shape[1] >= 2)[:, None]
        mean = total_of(share @ z.mean(dim=1), self.sum_across)
        mean = torch.where(enough, mean, self.running_mean.to(z.dtype))
        spread = (z - mean[choice][:, None]).square().mean(dim=1)
        var = total_of(share @ spread, self.sum_across)
        var = torch.where(enough, var, self.running_var.to(z.dtype))
        if update:
            self._update(mean, var, counts * z.shape[1], enough)
        return self._affine(mean, var)

    def fed_by(self, choice: Tensor) -> Tensor:
        """Which neurons' statistics each sample feeds, by its own `choice [B]`: `[B, N]`."""
        if self.of_layer:
            return choice.new_ones(len(choice), len(self.weight))
        return nn.functional.one_hot(choice, len(self.weight))

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
            self._update(mean, var, num_values, enough)
        return self._affine(mean, var)

    def _affine(self, mean: Tensor, var: Tensor) -> Affine:
        scale = self.weight * torch.rsqrt(var + self.eps)
        return Affine(scale, self.bias - mean * scale)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, num_values: Tensor, enough: Tensor) -> None:
        unbias = (num_values / (num_values - 1.0).clamp(min=1.0))[:, None]
        step = self.momentum * enough.to(mean.dtype)
        self.running_mean += (step * (mean.detach() - self.running_mean)).to(self.running_mean)
        self.running_var += (step * (var.detach() * unbias - self.running_var)).to(self.running_var)
