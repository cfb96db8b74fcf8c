"""Convolutions as products: columns of neighbours, and one product per group of rows.

Enters: `x [B, T, H, W, C]`, channels last. Leaves: `[B, T, H, W, taps * C]`, zero padded, tap by
tap; a kernel arranged to match turns a convolution into one matrix product, with every order of
derivative made of the same two operations.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

Extent = tuple[int, int, int]
SPATIAL: Extent = (1, 3, 3)
TEMPORAL: Extent = (3, 1, 1)
VOLUME: Extent = (3, 3, 3)


Slices = tuple[slice, ...]


def _tap_slices(shape: torch.Size, extent: Extent) -> list[tuple[Slices, Slices]]:
    """For every tap, where its values are read in x and written in the columns."""
    pairs = []
    for tap in product(*(range(size) for size in extent)):
        read, write = [], []
        for length, size, position in zip(shape[1:4], extent, tap, strict=True):
            shift = position - size // 2
            read.append(slice(max(0, shift), length + min(0, shift)))
            write.append(slice(max(0, -shift), length + min(0, -shift)))
        pairs.append(((slice(None), *read), (slice(None), *write)))
    return pairs


def _gather(x: Tensor, extent: Extent) -> Tensor:
    channels = x.shape[-1]
    pairs = _tap_slices(x.shape, extent)
    columns = x.new_zeros(*x.shape[:4], len(pairs), channels)
    for tap, (read, write) in enumerate(pairs):
        columns[..., tap, :][write] = x[read]
    return columns.flatten(4)


def _scatter(columns: Tensor, extent: Extent) -> Tensor:
    pairs = _tap_slices(columns.shape, extent)
    columns = columns.unflatten(4, (len(pairs), -1))
    x = columns.new_zeros(*columns.shape[:4], columns.shape[-1])
    for tap, (read, write) in enumerate(pairs):
        x[read] += columns[..., tap, :][write]
    return x


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, extent: Extent) -> Tensor:
        return _gather(x, extent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.extent = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _ColumnsAdjoint.apply(gradient, ctx.extent), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Columns.apply(tangent, ctx.extent)


class _ColumnsAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(columns: Tensor, extent: Extent) -> Tensor:
        return _scatter(columns, extent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.extent = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Columns.apply(gradient, ctx.extent), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _ColumnsAdjoint.apply(tangent, ctx.extent)


def neighbour_columns(x: Tensor, extent: Extent) -> Tensor:
    """Zero-padded neighbours of every position.

    Args:
        x: `[B, T, H, W, C]`.
        extent: Kernel size over T, H, W; odd.

    Returns:
        `[B, T, H, W, taps * C]`, taps outer, channels inner.
    """
    if torch.compiler.is_compiling():
        return _gather(x, extent)
    return _Columns.apply(x, extent)
