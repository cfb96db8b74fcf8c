"""Sums over processes: one that derivatives of every order and both modes pass through, one plain.

Enters: tensors of one shape on every process, which all call in the same order. Leaves: the sums.

What is differentiated is the sum of all processes' scalars, each process asking for the gradient
by its own copy of the parameters. A sum over processes reaches every process's scalar, so its
gradient is the sum of theirs: `d/dx_r sum_s f_s(sum_r x_r) = sum_s f_s'`. That is a sum over
processes again, which is why the second order needs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsts_pipeline.base.errors import UserError


class ProcessLostError(UserError):
    """Another process of the training ended or does not answer."""


def sum_in_place(values: Tensor) -> Tensor:
    """`values`, overwritten with their sum over processes.

    Raises:
        ProcessLostError: Another process is gone.
    """
    try:
        dist.all_reduce(values)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ProcessLostError(
            f"another process of this training ended or does not answer ({reason}); see its own "
            "message; the same command goes on from the last checkpoint"
        ) from None
    return values


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return sum_in_place(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Sum.apply(tangent)


def differentiable_sum(values: Tensor) -> Tensor:
    """Sum over processes, differentiable any number of times, forwards and backwards."""
    return _Sum.apply(values)


def sum_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over processes of many tensors, in one exchange per dtype."""
    result: list[Tensor] = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        joined = torch.cat([tensors[place].detach().reshape(-1) for place in places])
        parts = sum_in_place(joined).split([tensors[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            result[place] = part.view(tensors[place].shape)
    return result
