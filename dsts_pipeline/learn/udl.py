"""Upstream-Downstream Learning: the gradient of its meta-update step (paper 3.3, Eq. 9-11).

Enters: a loss of upstream and downstream parameters and two batches. Leaves: gradients by name.
Nothing here knows of DSTS.

Step 1 (Eq. 9): `d_hat(u) = d - alpha grad_d loss(u, d; train)`. Step 2 (Eq. 10) differentiates
`loss(u_hat, d_hat(u); val)` by u, with u_hat a constant. With
`v = grad_{d_hat} loss(u_hat, d_hat; val)` that is a mixed Hessian-vector product,
`-alpha d/du [grad_d loss(u, d; train) . v]`: v's graph need not be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")
Parameters = Mapping[str, Tensor]
LossFunction = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]


def meta_gradient(
    loss_fn: LossFunction,
    upstream: Parameters,
    downstream: Parameters,
    train_batch: Batch,
    val_batch: Batch,
    inner_lr: float,
) -> dict[str, Tensor]:
    """Gradient of the validation loss after a simulated step, by the upstream parameters.

    Args:
        loss_fn: `loss_fn(upstream, downstream, batch)` -> scalar; the same random draw every time
            that it is called with `train_batch`.
        upstream: u by name.
        downstream: d by name.
        train_batch, val_batch: Disjoint batches, handed to `loss_fn`.
        inner_lr: alpha of the simulated step, plain SGD.

    Returns:
        The meta-gradient of every entry of `upstream` (zero where u does not matter).
    """
    u, d = _leaves(upstream), _leaves(downstream)
    train_loss = loss_fn(u, d, train_batch)
    step = _gradient(train_loss, d, create_graph=True)
    ahead = {name: (d[name] - inner_lr * step[name]).detach() for name in d}
    v = validation_gradient(loss_fn, upstream, ahead, val_batch)
    products = [step[name] for name in d if step[name].requires_grad]
    directions = [-inner_lr * v[name] for name in d if step[name].requires_grad]
    if not products:
        return {name: torch.zeros_like(value) for name, value in u.items()}
    found = torch.autograd.grad(products, list(u.values()), directions, allow_unused=True)
    return _named(u, found)


def validation_gradient(
    loss_fn: LossFunction, upstream: Parameters, ahead: Parameters, val_batch: Any
) -> dict[str, Tensor]:
    """`v = grad_{d_hat} loss(u_hat, d_hat; val)`, with u_hat a constant."""
    constant = {name: value.detach() for name, value in upstream.items()}
    leaves = _leaves(ahead)
    return _gradient(loss_fn(constant, leaves, val_batch), leaves, create_graph=False)


def _leaves(parameters: Parameters) -> dict[str, Tensor]:
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}


def _gradient(loss: Tensor, by: dict[str, Tensor], *, create_graph: bool) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        loss, list(by.values()), create_graph=create_graph, allow_unused=True
    )
    return _named(by, found)


def _named(by: dict[str, Tensor], found: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(by.items(), found, strict=True)
    }
