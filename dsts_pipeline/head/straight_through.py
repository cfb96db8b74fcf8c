"""The term that carries the dense straight-through gradient: zero in value, alive in gradient.

With coefficients `y = hard + (soft - sg(soft))`, the layer's output `sum_i y_i n_i(X)` is the
chosen neuron's output plus `sum_i (soft_i - sg(soft_i)) n_i(X)`. The second sum is zero; its
gradient reaches `soft` alone: `dL/d soft_i = <dL/dZ, n_i(X)>`. So the unchosen neurons need a
forward pass without a graph, and no backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RoutingTerm(torch.autograd.Function):
    @staticmethod
    def forward(soft: Tensor, z: Tensor, fusion: Tensor | None) -> Tensor:
        return z.new_zeros(*z.shape[:2], z.shape[3] if fusion is None else fusion.shape[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, fusion = ctx.saved_tensors
        if fusion is None:
            back = gradient[:, :, None]
        else:
            back = (gradient @ fusion.flatten(0, 1).t()).view_as(z)
        return (back * z).sum(dim=(1, 3)), None, None


def _weigh(weights: Tensor, z: Tensor, fusion: Tensor | None) -> Tensor:
    """`sum_i weights_i n_i(X)` `[B, P, M]`."""
    z = z * weights[:, None, :, None]
    return z.sum(dim=2) if fusion is None else z.flatten(2) @ fusion.flatten(0, 1)


def routing_term(soft: Tensor, z: Tensor, fusion: Tensor | None, *, first_order: bool) -> Tensor:
    """Zero `[B, P, M]` whose gradient is the dense estimator's.

    Args:
        soft: `[B, N]`, with gradient.
        z: `[B, P, N, C]` of all neurons; needs no graph if `first_order`.
        fusion: `[N, C, M]`, or None for no fusion.
        first_order: Whether nobody differentiates this term's gradient, in either mode: a
                derivative of the coefficients meets the neurons' own gradients there.
    """
    if first_order and not torch.compiler.is_compiling():
        return _RoutingTerm.apply(soft, z, fusion)
    return _weigh(soft - soft.detach(), z, fusion)
