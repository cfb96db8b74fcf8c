"""The synapse mechanism: which neuron a sample activates (paper 3.2.1, Eq. 1-3).

Enters: `x [B, T, H, W, C]` and scoring kernels `m [N, C_out, C]`. Leaves: impulses `v [B, N]`, the
chosen neuron `[B]`, and straight-through coefficients whose value is the one-hot choice.

Eq. 1-2 sum every element of `m_i(X)`. A sum over outputs and positions of a 1x1x1 convolution is
`(sum of m_i over its outputs) . (sum of X over T H W)`: one pooled vector and one small product.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.head.norms import SumAcross, average_of, total_of


def sum_impulses(x: Tensor, scoring_kernel: Tensor) -> Tensor:
    """Impulses of Eq. 2, folded: `v_i = sum_c (sum_o m_i[o, c]) (sum_thw X[c])`.

    Args:
        x: `[B, T, H, W, C]`.
        scoring_kernel: `[N, C_out, C]`.

    Returns:
        `[B, N]`, in float32 at least.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        pooled = x.sum(dim=(1, 2, 3), dtype=wide)
        return pooled @ scoring_kernel.to(wide).sum(dim=1).t()


def choose(impulses: Tensor, gumbel: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Choice of one neuron per sample and the relaxed logits that it was taken from.

    With noise: a sample of Gumbel-softmax over the impulses; without: their argmax.

    Args:
        impulses: `v [B, N]`.
        gumbel: `[B, N]` or None.
        temperature: tau > 0.

    Returns:
        `choice [B]` int64 and `logits [B, N] = (v + gumbel) / tau`.
    """
    logits = (impulses if gumbel is None else impulses + gumbel) / temperature
    return logits.argmax(dim=1), logits


def dense_coefficients(choice: Tensor, logits: Tensor) -> Tensor:
    """Straight-through one-hot `[B, N]`: its value is hard, its gradient that of the softmax."""
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, choice[:, None], 1.0)
    return hard + (soft - soft.detach())


def selected_coefficient(onehot: Tensor, logits: Tensor) -> Tensor:
    """Straight-through coefficient `[B]` of the chosen neuron alone: its value is 1.

    Deviation: the estimator that needs no outputs of unchosen neurons. The gradient is that of the
    chosen softmax entry with regard to its own impulse; the other impulses count as constants, so
    that scoring kernels of unchosen neurons get exactly none.

    Args:
        onehot: The choice as rows `[B, N]`.
        logits: `[B, N]`.
    """
    own = (logits * onehot.to(logits.dtype)).sum(dim=1)
    others = logits.detach().masked_fill(onehot > 0, float("-inf")).logsumexp(dim=1)
    soft = torch.sigmoid(own - others)
    return 1.0 + (soft - soft.detach())


def balance_loss(choice: Tensor, impulses: Tensor, sum_across: SumAcross | None = None) -> Tensor:
    """Load-balancing loss `N * sum_i f_i P_i`, 1 where use is even (Fedus et al. 2021, Eq. 4).

    `f_i` is the share of samples sent to neuron i (no gradient), `P_i` the mean of softmax(v)_i.
    With `sum_across` both are those of all processes' samples.
    Deviation: not in the paper; its weight is 0 by default.
    """
    num_neurons = impulses.shape[1]
    neurons = torch.arange(num_neurons, device=choice.device)
    share = (choice[:, None] == neurons).to(impulses.dtype).mean(dim=0)
    share = average_of(share, len(choice), sum_across)
    probability = average_of(impulses.softmax(dim=1).mean(dim=0), len(choice), sum_across)
    return num_neurons * (share * probability).sum()


# ---- impulses ------------------------------------------------------------------------------------
#
# How strongly each neuron answers a sample:
# - `sum`: the paper's. A sum over C * T * H * W products: its spread can swamp the Gumbel noise.
# - `mean`: that sum divided by the number of summed elements.
# - `standardized`: per neuron, centred and scaled over the batch (running values at test time),
#   then times `impulse_spread`. Deviation: pooled maps of different clips point in nearly one
#   direction, so uncentred impulses rank the neurons alike for all clips and the layer collapses to
#   one. The batch is that of all processes which train together (`sum_across`).


class Impulses(nn.Module):
    """Impulses of N neurons; keeps running statistics where they are standardized."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, options: HeadSettings) -> None:
        super().__init__()
        self.kind = options.impulse
        self.spread = options.impulse_spread
        self.momentum = 0.1
        self.eps = 1e-5
        self.sum_across: SumAcross | None = None
        if self.kind == "standardized":
            self.register_buffer("running_mean", torch.zeros(options.num_neurons))
            self.register_buffer("running_var", torch.ones(options.num_neurons))

    def forward(self, x: Tensor, scoring_kernel: Tensor, *, update: bool) -> Tensor:
        """Impulses `[B, N]` of `x [B, T, H, W, C]`; `update` moves running values in training."""
        raw = self.measure(x, scoring_kernel)
        if self.kind != "standardized":
            return raw
        mean = self.running_mean
        var = self.running_var
        if self.training and (len(raw) > 1 or self.sum_across is not None):
            mean = average_of(raw.mean(dim=0), len(raw), self.sum_across)
            var = average_of((raw - mean).square().mean(dim=0), len(raw), self.sum_across)
            if update:
                self._update(mean.detach(), var.detach(), len(raw))
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

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, num_samples: int) -> None:
        """`num_samples` are this process's; together they have at least two."""
        counted = total_of(var.new_full((), float(num_samples)), self.sum_across)
        unbiased = var * counted / (counted - 1.0)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)


# ---- gates ---------------------------------------------------------------------------------------
#
# Improved SemHash (paper 3.2.2, Eq. 4-5) says which operator each input channel goes to: `b [N, C]`
# in [0, 1], 0 the spatial one, 1 the temporal one. Source: Kaiser & Bengio 2018; Chen et al. 2019
# (GaterNet).

SATURATION = math.log(11.0)
"""Beyond |g + noise| = ln 11 the soft gate is clamped and its gradient is exactly zero."""


def soft_gates(noisy_logits: Tensor) -> Tensor:
    """Saturating sigmoid `clamp(1.2 sigmoid(g) - 0.1, 0, 1)`."""
    return (1.2 * torch.sigmoid(noisy_logits) - 0.1).clamp(0.0, 1.0)


def sample_gates(logits: Tensor, normal: Tensor, use_hard: Tensor, noise_scale: float) -> Tensor:
    """Gates of a training pass: hard or soft in value, always soft in gradient.

    Args:
        logits: `g [N, C]`.
        normal: `[N, C]` standard normal noise.
        use_hard: `[N]` bool.
        noise_scale: Standard deviation of the noise (paper: 1).

    Returns:
        `b [N, C]`.
    """
    noisy = logits + noise_scale * normal.to(logits.dtype)
    soft = soft_gates(noisy)
    hard = (noisy > 0).to(soft.dtype)
    value = torch.where(use_hard[:, None], hard, soft.detach())
    return value + (soft - soft.detach())


def decide_gates(logits: Tensor) -> Tensor:
    """Gates of test time: `1[g > 0]`, no noise, no gradient."""
    return (logits > 0).to(logits.dtype)


def halve_channels(num_neurons: int, channels: int) -> Tensor:
    """Gates of the ablation without gates: the first half spatial, the second temporal.

    Choice: of an odd number of channels the temporal operator gets one more.
    """
    gates = torch.ones(num_neurons, channels)
    gates[:, : channels // 2] = 0.0
    return gates


# ---- noise ---------------------------------------------------------------------------------------
#
# All random draws of one training pass, made once and passed in: the same draw can be used twice,
# which UDL's first step and its derivative need. No noise at all means the decisions of test time.


class LayerNoise(NamedTuple):
    """The noise of one DSTS layer.

    gumbel: `[B, N]` standard Gumbel values, added to the impulses.
    gate_normal: `[N, C]` standard normal values, added to the gate logits.
    gate_hard: `[N]` bool, whether a neuron's gates are taken hard (else soft) in this pass.
    Of a layer with a common neuron both have a last row more, which is the common neuron's.

    Choice: one gate draw per neuron and pass, shared by the batch (the paper states batch size 1);
    so gates fold into kernels. Choice: the hard or soft coin is tossed per neuron.
    """

    gumbel: Tensor
    gate_normal: Tensor
    gate_hard: Tensor

    def scaled(self, factor: float) -> LayerNoise:
        """With Gumbel and normal values times `factor`; the coins stay."""
        return self._replace(gumbel=factor * self.gumbel, gate_normal=factor * self.gate_normal)

    def of_samples(self, start: int, stop: int) -> LayerNoise:
        """The part of a process that has these samples of a batch; gates' noise is common."""
        return self._replace(gumbel=self.gumbel[start:stop])

    def split(self, num_neurons: int) -> tuple[LayerNoise, LayerNoise]:
        """What the first `num_neurons` neurons have, and the rest."""
        parts = (self.gate_normal, self.gate_hard)
        first, rest = ([p[:num_neurons] for p in parts], [p[num_neurons:] for p in parts])
        return LayerNoise(self.gumbel, *first), LayerNoise(self.gumbel, *rest)


def draw_layer_noise(
    num_samples: int,
    num_neurons: int,
    channels: int,
    *,
    has_common: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LayerNoise:
    """Draw the noise of one layer for a batch of `num_samples`.

    Args:
        has_common: Whether the layer has a common neuron beside its N.
        generator: Source of randomness on `device`; None is torch's global one.

    Returns:
        `LayerNoise` with shapes `[B, N]`, `[N, C]` and `[N]`.
    """
    like = torch.empty(0, device=device, dtype=dtype)
    exponential = like.new_empty(num_samples, num_neurons).exponential_(generator=generator)
    num_gated = num_neurons + has_common
    normal = like.new_empty(num_gated, channels).normal_(generator=generator)
    coin = like.new_empty(num_gated).uniform_(generator=generator)
    return LayerNoise(-exponential.log(), normal, coin < 0.5)
