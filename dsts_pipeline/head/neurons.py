"""What the specialized neurons compute, for their own samples or for all (paper 3.2.2, Eq. 4-8).

Enters: `x [B, T, H, W, C]`, the operators with gates folded into their kernels, the routing.
Leaves: `z = relu(bn(S x)) + relu(bn(T x))`, before fusion.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsts_pipeline.head.norms import Affine, NeuronNorm

# ---- one product per group of rows ---------------------------------------------------------------
#
# Each sample meets only its own neuron's kernel. The two operations below are each other's
# derivatives, so every order of derivative stays grouped, and a neuron without rows costs nothing
# and gets an exact zero.


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
    spans = []
    start = 0
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
        rows = rows.to(dtype)
        kernels = kernels.to(dtype)
    return _GroupedProduct.apply(rows, kernels, counts)


# ---- convolutions as products --------------------------------------------------------------------
#
# Columns of neighbours, zero padded, tap by tap: a kernel arranged to match turns a convolution
# into one matrix product, with every order of derivative made of the same two operations.

Extent = tuple[int, int, int]
SPATIAL: Extent = (1, 3, 3)
TEMPORAL: Extent = (3, 1, 1)
VOLUME: Extent = (3, 3, 3)


Slices = tuple[slice, ...]


def _tap_slices(shape: torch.Size, extent: Extent) -> list[tuple[Slices, Slices]]:
    """For every tap, where its values are read in x and written in the columns."""
    pairs = []
    for tap in product(*(range(size) for size in extent)):
        read = []
        write = []
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


# ---- the operators -------------------------------------------------------------------------------


class Branch(NamedTuple):
    """One operator of N neurons: its extent, kernels `[N, taps * C, C]` and norm."""

    extent: Extent
    kernels: Tensor
    norm: NeuronNorm


class Routing(NamedTuple):
    """Which neuron each sample goes to: `choice [B]`, and the batch sorted by it.

    `groups` is None where sorting is not wanted (under torch.compile): then every sample gets its
    own copy of its neuron's kernel. With groups, samples are in sorted order, `choice` too.
    """

    choice: Tensor
    groups: Groups | None


def routed_product(rows: Tensor, kernels: Tensor, routing: Routing) -> Tensor:
    """Each sample's `rows [B, P, K]` times its own neuron's of `kernels [N, K, M]`."""
    if routing.groups is None:
        return torch.bmm(rows, kernels[routing.choice])
    output = grouped_product(rows.flatten(0, 1), kernels, routing.groups.counts)
    return output.view(rows.shape[0], rows.shape[1], -1)


def routed_operator(x: Tensor, branch: Branch, routing: Routing) -> Tensor:
    """Output `[B, P, C]` of each sample's neuron's operator, before its norm."""
    return widen(routed_product(columns_of(x, branch), branch.kernels, routing))


def columns_of(x: Tensor, branch: Branch) -> Tensor:
    """Neighbours `[B, P, taps * C]` that an operator reads of `x [B, T, H, W, C]`."""
    return neighbour_columns(x, branch.extent).flatten(1, 3)


def joint_product(columns: Tensor, kernels: Tensor) -> Tensor:
    """`columns [B, P, K]` times all of `kernels [N, K, C]` in one product: `[B, P, N, C]`."""
    joined = kernels.permute(1, 0, 2).flatten(1)  # [K, N * C]
    return widen(columns @ joined).unflatten(2, (kernels.shape[0], kernels.shape[2]))


class RoutedRun(NamedTuple):
    """`z [B, P, C]` of each sample's own neuron, and what each branch was computed with."""

    z: Tensor
    affines: list[Affine]
    columns: list[Tensor]


def run_routed(
    x: Tensor, branches: tuple[Branch, ...], routing: Routing, *, update: bool
) -> RoutedRun:
    """Each sample's own neuron in a training pass."""
    total = None
    affines = []
    kept = []
    for branch in branches:
        columns = columns_of(x, branch)
        raw = widen(routed_product(columns, branch.kernels, routing))
        affine = branch.norm.routed_affine(raw, routing.choice, update=update)
        scale, shift = (part[routing.choice][:, None] for part in affine)
        z = torch.addcmul(shift, raw, scale).relu()
        total = z if total is None else total + z
        affines.append(affine)
        kept.append(columns)
    assert total is not None
    return RoutedRun(total, affines, kept)


def run_frozen(
    x: Tensor, branches: tuple[Branch, ...], affines: list[Affine], routing: Routing
) -> Tensor:
    """`z [B, P, C]` of each sample's own neuron, with given norms folded into the kernels."""
    total = None
    for branch, affine in zip(branches, affines, strict=True):
        folded = branch._replace(kernels=branch.kernels * affine.scale[:, None])
        z = (routed_operator(x, folded, routing) + affine.shift[routing.choice][:, None]).relu()
        total = z if total is None else total + z
    assert total is not None
    return total


def run_joint(x: Tensor, branches: tuple[Branch, ...], *, training: bool, update: bool) -> Tensor:
    """`z [B, P, N, C]` of all neurons, their statistics from the whole batch."""
    total = None
    for branch in branches:
        raw = joint_product(columns_of(x, branch), branch.kernels)
        if training:
            affine = branch.norm.joint_affine(raw, update=update)
        else:
            affine = branch.norm.running_affine()
        z = torch.addcmul(affine.shift, raw, affine.scale).relu()
        total = z if total is None else total + z
    assert total is not None
    return total


def run_all(branches: tuple[Branch, ...], routed: RoutedRun) -> Tensor:
    """`z [B, P, N, C]` of all neurons with the norms of `routed`, folded into the kernels."""
    total = None
    for branch, affine, columns in zip(branches, routed.affines, routed.columns, strict=True):
        raw = joint_product(columns, branch.kernels * affine.scale[:, None])
        if torch.is_grad_enabled():
            z = (raw + affine.shift).relu()
            total = z if total is None else total + z
        else:
            z = raw.add_(affine.shift).relu_()
            total = z if total is None else total.add_(z)
    assert total is not None
    return total


def widen(z: Tensor) -> Tensor:
    """`z` in float32 at least: norms and sums over samples are not done in half precision."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
