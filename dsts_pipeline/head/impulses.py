"""How strongly each neuron answers a sample: the sum of Eq. 2, its mean, or standardized.

Enters: `x [B, T, H, W, C]` and scoring kernels `[N, C, C]`. Leaves: `[B, N]`.
- `sum`: the paper's. A sum over C * T * H * W products: its spread can swamp the Gumbel noise.
- `mean`: that sum divided by the number of summed elements.
- `standardized`: per neuron, centred and scaled over the batch (running values at test time), then
  times `impulse_spread`. Deviation: pooled maps of different clips point in nearly one direction,
  so uncentred impulses rank the neurons alike for all clips and the layer collapses to one.
  The batch is that of all processes which train together (`sum_across`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsts_pipeline.head.across import SumAcross, average_of
from dsts_pipeline.head.options import LayerOptions
from dsts_pipeline.head.synapse import sum_impulses


class Impulses(nn.Module):
    """Impulses of N neurons; keeps running statistics where they are standardized."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_neurons: int, options: LayerOptions) -> None:
        super().__init__()
        self.kind, self.spread = options.impulse, options.impulse_spread
        self.momentum, self.eps = 0.1, 1e-5
        self.sum_across: SumAcross | None = None
        if self.kind == "standardized":
            self.register_buffer("running_mean", torch.zeros(num_neurons))
            self.register_buffer("running_var", torch.ones(num_neurons))

    def forward(self, x: Tensor, scoring_kernel: Tensor, *, update: bool) -> Tensor:
        """Impulses `[B, N]` of `x [B, T, H, W, C]`; `update` moves running values in training."""
        raw = self.measure(x, scoring_kernel)
        if self.kind != "standardized":
            return raw
        num_samples = self._num_samples(raw) if self.training else 0
        if num_samples < 2:
            mean, var = self.running_mean, self.running_var
        else:
            mean = average_of(raw.mean(dim=0), len(raw), self.sum_across)
            var = average_of((raw - mean).square().mean(dim=0), len(raw), self.sum_across)
            if update:
                self._update(mean.detach(), var.detach(), num_samples)
        return self.spread * (raw - mean) * torch.rsqrt(var + self.eps)

    def measure(self, x: Tensor, scoring_kernel: Tensor) -> Tensor:
        """The impulses `[B, N]` before any standardizing.

        Choice: standardized impulses start from the sum over outputs and mean over positions,
        whose size does not depend on the map's extent.
        """
        num_positions = x.shape[1] * x.shape[2] * x.shape[3]
        summed = sum_impulses(x, scoring_kernel)
        if self.kind == "sum":
            return summed
        return summed / (num_positions * (x.shape[4] if self.kind == "mean" else 1))

    def _num_samples(self, raw: Tensor) -> int:
        if self.sum_across is None:
            return len(raw)
        return int(self.sum_across(torch.tensor(len(raw), device=raw.device)))

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, num_samples: int) -> None:
        unbiased = var * num_samples / (num_samples - 1)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
