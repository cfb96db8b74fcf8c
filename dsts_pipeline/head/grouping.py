"""One matrix product per group of rows: each sample meets only its own neuron's kernel.

Enters: rows `[R, K]` sorted by neuron, kernels `[N, K, M]`, rows per neuron. Leaves: `[R, M]`.
The two operations below are each other's derivatives, so every order of derivative stays grouped,
and a neuron without rows costs nothing and gets an exact zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """Samples sorted by neuron.

    order: `[B]` positions that sort a batch by neuron, inverse: `[B]` positions that undo it.
    counts: samples per neuron, on the host.
    """

    order: Tensor
    inverse: Tensor
    counts: tuple[int, ...]


def group_samples(choice: Tensor, num_neurons: int) -> Groups:
    """Sort a batch by its chosen neurons `choice [B]`."""
    order = choice.argsort(stable=True)
    counts = torch.bincount(choice, minlength=num_neurons).tolist()
    return Groups(order, order.argsort(), tuple(counts))


def _spans(num_rows: int, counts: tuple[int, ...]) -> list[tuple[int, slice]]:
    rows_per_sample = num_rows // max(sum(counts), 1)
    spans, start = [], 0
    for neuron, count in enumerate(counts):
        stop = start + count * rows_per_sample
        if count:
            spans.append((neuron, slice(start, stop)))
        start = stop
    return spans


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, kernels: Tensor, counts: tuple[int, ...]) -> Tensor:
        output = rows.new_empty(rows.shape[0], kernels.shape[2])
        for neuron, span in _spans(rows.shape[0], counts):
            torch.mm(rows[span], kernels[neuron], out=output[span])
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        rows, kernels, ctx.counts = inputs
        ctx.save_for_backward(rows, kernels)
        ctx.save_for_forward(rows, kernels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, kernels = ctx.saved_tensors
        for_rows = for_kernels = None
        if ctx.needs_input_grad[0]:
            for_rows = _GroupedProduct.apply(gradient, kernels.transpose(1, 2), ctx.counts)
        if ctx.needs_input_grad[1]:
            for_kernels = _GroupedOuter.apply(rows, gradient, ctx.counts)
        return for_rows, for_kernels, None

    @staticmethod
    def jvp(ctx: Any, rows_t: Tensor | None, kernels_t: Tensor | None, _: None) -> Tensor | None:
        rows, kernels = ctx.saved_tensors
        parts = []
        if rows_t is not None:
            parts.append(_GroupedProduct.apply(rows_t, kernels, ctx.counts))
        if kernels_t is not None:
            parts.append(_GroupedProduct.apply(rows, kernels_t, ctx.counts))
        return sum(parts[1:], parts[0]) if parts else None


class _GroupedOuter(torch.autograd.Function):
    @staticmethod
    def forward(left: Tensor, right: Tensor, counts: tuple[int, ...]) -> Tensor:
        output = left.new_zeros(len(counts), left.shape[1], right.shape[1])
        for neuron, span in _spans(left.shape[0], counts):
            torch.mm(left[span].t(), right[span], out=output[neuron])
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        left, right, ctx.counts = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        left, right = ctx.saved_tensors
        for_left = for_right = None
        if ctx.needs_input_grad[0]:
            for_left = _GroupedProduct.apply(right, gradient.transpose(1, 2), ctx.counts)
        if ctx.needs_input_grad[1]:
            for_right = _GroupedProduct.apply(left, gradient, ctx.counts)
        return for_left, for_right, None

    @staticmethod
    def jvp(ctx: Any, left_t: Tensor | None, right_t: Tensor | None, _: None) -> Tensor | None:
        left, right = ctx.saved_tensors
        parts = []
        if left_t is not None:
            parts.append(_GroupedOuter.apply(left_t, right, ctx.counts))
        if right_t is not None:
            parts.append(_GroupedOuter.apply(left, right_t, ctx.counts))
        return sum(parts[1:], parts[0]) if parts else None


def grouped_product(rows: Tensor, kernels: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Product of each group of rows with its own kernel.

    Args:
        rows: `[R, K]`, sorted by neuron, the same number of rows per sample.
        kernels: `[N, K, M]`.
        counts: Samples per neuron; R is a multiple of their sum.

    Returns:
        `[R, M]`.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, kernels = rows.to(dtype), kernels.to(dtype)
    return _GroupedProduct.apply(rows, kernels, counts)
