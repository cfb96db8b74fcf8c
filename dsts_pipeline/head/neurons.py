"""What the specialized neurons compute, for their own samples or for all (paper 3.2.2, Eq. 4-8).

Enters: `x [B, T, H, W, C]`, the operators with gates folded into their kernels, the routing.
Leaves: `z = relu(bn(S x)) + relu(bn(T x))`, before fusion.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsts_pipeline.head.convolution import Extent, neighbour_columns
from dsts_pipeline.head.grouping import Groups, grouped_product
from dsts_pipeline.head.norms import Affine, NeuronNorm


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
    total, affines, kept = None, [], []
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
