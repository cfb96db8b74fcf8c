"""Gates by Improved SemHash: which operator each input channel goes to (paper 3.2.2, Eq. 4-5).

Enters: gate logits `g [N, C]` and noise. Leaves: `b [N, C]` in [0, 1]; 0 sends a channel to the
spatial operator, 1 to the temporal one. Source: Kaiser & Bengio 2018; Chen et al. 2019 (GaterNet).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
