"""Batch norms of a layer's N neurons, each fed only by the samples routed to it.

Enters: outputs of an operator and the routing. Leaves: the normalised outputs. At test time a
neuron sees only its own samples, so its statistics describe those. Rules, where the paper is
silent (`Choice:` all three):
- A neuron that got samples is normalised by their statistics, and so are the outputs of it that
  the dense estimator looks at for samples that went elsewhere.
- A neuron that got fewer than two values per channel is normalised by its running statistics,
  which then stay as they are.
- Running statistics move with `momentum` and the unbiased variance, like torch's batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NeuronNorm(nn.Module):
    """N batch norms over C channels: `weight`, `bias`, `running_mean`, `running_var` `[N, C]`."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_neurons: int, channels: int, *, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_neurons, channels))
        self.bias = nn.Parameter(torch.zeros(num_neurons, channels))
        self.register_buffer("running_mean", torch.zeros(num_neurons, channels))
        self.register_buffer("running_var", torch.ones(num_neurons, channels))

    def normalize_routed(self, z: Tensor, choice: Tensor, *, update: bool) -> Tensor:
        """Normalise each sample by its own neuron.

        Args:
            z: `[B, P, C]`, P positions.
            choice: `[B]` neuron of each sample.
            update: Whether the running statistics move (in training mode only).

        Returns:
            `[B, P, C]`.
        """
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            return torch.addcmul(shift[choice][:, None], z, scale[choice][:, None])
        samples = nn.functional.one_hot(choice, len(self.weight)).to(z.dtype)  # [B, N]
        counts = samples.sum(dim=0)
        share = (samples / counts.clamp(min=1.0)).t()  # [N, B]
        enough = (counts * z.shape[1] >= 2)[:, None]
        mean = torch.where(enough, share @ z.mean(dim=1), self.running_mean)
        centred = z - mean[choice][:, None]
        var = torch.where(enough, share @ centred.square().mean(dim=1), self.running_var)
        if update:
            self._update(mean, var, counts * z.shape[1], enough)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias[choice][:, None], centred, scale[choice][:, None])

    def normalize_all(self, z: Tensor, samples: Tensor, *, update: bool) -> Tensor:
        """Normalise the outputs of every neuron.

        Args:
            z: `[B, P, N, C]`.
            samples: `[B, N]`, 1 where a sample feeds a neuron's statistics, else 0.
            update: Whether the running statistics move (in training mode only).

        Returns:
            `[B, P, N, C]`.
        """
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return torch.addcmul(self.bias - self.running_mean * scale, z, scale)
        counts = samples.sum(dim=0)
        share = (samples / counts.clamp(min=1.0)).to(z.dtype)
        enough = (counts * z.shape[1] >= 2)[:, None]
        mean = torch.einsum("bn,bnc->nc", share, z.mean(dim=1))
        mean = torch.where(enough, mean, self.running_mean)
        centred = z - mean
        var = torch.einsum("bn,bnc->nc", share, centred.square().mean(dim=1))
        var = torch.where(enough, var, self.running_var)
        if update:
            self._update(mean, var, counts * z.shape[1], enough)
        return torch.addcmul(self.bias, centred, self.weight * torch.rsqrt(var + self.eps))

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, num_values: Tensor, enough: Tensor) -> None:
        unbias = (num_values / (num_values - 1.0).clamp(min=1.0))[:, None]
        step = self.momentum * enough.to(mean.dtype)
        self.running_mean += (step * (mean.detach() - self.running_mean)).to(self.running_mean)
        self.running_var += (step * (var.detach() * unbias - self.running_var)).to(self.running_var)
