"""The synapse mechanism: which neuron a sample activates (paper 3.2.1, Eq. 1-3).

Enters: `x [B, T, H, W, C]` and scoring kernels `m [N, C, C]`. Leaves: impulses `v [B, N]`, the
chosen neuron `[B]`, and straight-through coefficients whose value is the one-hot choice.

Eq. 1-2 sum every element of `m_i(X)`. A sum over outputs and positions of a 1x1x1 convolution is
`(sum of m_i over its outputs) . (sum of X over T H W)`: one pooled vector and one small product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsts_pipeline.head.across import SumAcross, average_of


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


def selected_coefficient(choice: Tensor, logits: Tensor) -> Tensor:
    """Straight-through coefficient `[B]` of the chosen neuron alone: its value is 1.

    Deviation: the estimator that needs no outputs of unchosen neurons. The gradient is that of the
    chosen softmax entry with regard to its own impulse; the other impulses count as constants, so
    that scoring kernels of unchosen neurons get exactly none.
    """
    own = logits.gather(1, choice[:, None])
    others = logits.detach().scatter(1, choice[:, None], float("-inf")).logsumexp(dim=1)
    soft = torch.sigmoid(own[:, 0] - others)
    return 1.0 + (soft - soft.detach())


def balance_loss(choice: Tensor, impulses: Tensor, sum_across: SumAcross | None = None) -> Tensor:
    """Load-balancing loss `N * sum_i f_i P_i`, 1 where use is even (Fedus et al. 2021, Eq. 4).

    `f_i` is the share of samples sent to neuron i (no gradient), `P_i` the mean of softmax(v)_i.
    With `sum_across` both are those of all processes' samples.
    Deviation: not in the paper; its weight is 0 by default.
    """
    num_neurons = impulses.shape[1]
    share = torch.bincount(choice, minlength=num_neurons).to(impulses.dtype) / len(choice)
    share = average_of(share, len(choice), sum_across)
    probability = average_of(impulses.softmax(dim=1).mean(dim=0), len(choice), sum_across)
    return num_neurons * (share * probability).sum()
