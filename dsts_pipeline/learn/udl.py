"""Upstream-Downstream Learning: the gradient of its meta-update step (paper 3.3, Eq. 9-11).

Enters: a loss of upstream and downstream parameters and two batches. Leaves: gradients by name.
Nothing here knows of DSTS.

Step 1 (Eq. 9): `d_hat(u) = d - alpha grad_d loss(u, d; train)`. Step 2 (Eq. 10) differentiates
`loss(u_hat, d_hat(u); val)` by u, with u_hat a constant. With
`v = grad_{d_hat} loss(u_hat, d_hat; val)` that is a mixed Hessian-vector product,
`-alpha d/du [grad_d loss(u, d; train) . v]`: v's graph need not be kept. `products` has the ways
to compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dsts_pipeline.learn.products import (
    LossFunction,
    Method,
    Parameters,
    as_leaves,
    check_method,
    gradient_of,
    mixed_product,
)

Part = tuple[Any, float]
"""A micro-batch and its weight in the mean; the weights of a batch sum to 1."""

SumNamed = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Sums gradients by name over processes; no derivative passes through it."""


def meta_gradient(
    loss_fn: LossFunction,
    upstream: Parameters,
    downstream: Parameters,
    train_batch: Any,
    val_batch: Any,
    inner_lr: float,
    *,
    method: Method = "exact",
    first_order_loss_fn: LossFunction | None = None,
    loss_scale: float = 1.0,
) -> dict[str, Tensor]:
    """Gradient of the validation loss after a simulated step, by the upstream parameters.

    `d/du loss(u_hat, d - inner_lr * grad_d loss(u, d; train); val)`, u_hat = u a constant: step 2
    of UDL, of which `u' = u - alpha * meta_gradient`.

    Args:
        loss_fn: `loss_fn(upstream, downstream, batch)` -> scalar; the same random draw every time
            that it is called with `train_batch`.
        upstream: u by name.
        downstream: d by name.
        train_batch, val_batch: Disjoint batches, handed to `loss_fn`.
        inner_lr: alpha of the simulated step, plain SGD.
        method: "exact" (reverse over reverse), "forward_over_reverse" (exact too) or
            "finite_difference" (central, as in DARTS).
        first_order_loss_fn: The same loss in a cheaper form, used where its gradient is not
            differentiated again.
        loss_scale: Factor on losses before every backward pass, for half precision.

    Returns:
        The meta-gradient of every entry of `upstream` (zero where u does not matter).

    Raises:
        ValueError: `method` is unknown, or "first_order", whose result would be zero.

    Source: paper 3.3, Eq. 9-10.

    Examples:
        >>> def loss_fn(u, d, batch):
        ...     return 0.5 * (u["a"] * d["b"] - batch) ** 2
        >>> u, d = {"a": torch.tensor(1.0)}, {"b": torch.tensor(2.0)}
        >>> meta_gradient(loss_fn, u, d, torch.tensor(1.0), torch.tensor(3.0), inner_lr=0.1)
        {'a': tensor(0.3300)}
    """
    return meta_gradient_of_parts(
        loss_fn,
        upstream,
        downstream,
        [(train_batch, 1.0)],
        [(val_batch, 1.0)],
        inner_lr,
        method=method,
        first_order_loss_fn=first_order_loss_fn,
        loss_scale=loss_scale,
    )


def meta_gradient_of_parts(
    loss_fn: LossFunction,
    upstream: Parameters,
    downstream: Parameters,
    train_parts: Sequence[Part],
    val_parts: Sequence[Part],
    inner_lr: float,
    *,
    method: Method = "exact",
    first_order_loss_fn: LossFunction | None = None,
    loss_scale: float = 1.0,
    sum_across: SumNamed | None = None,
) -> dict[str, Tensor]:
    """`meta_gradient` of batches that are gone through in parts, one graph in memory at a time.

    With a single training part its graph serves step 1 and the product; with more, each part is
    run again for its share of the product.

    Several processes: each passes its own parts, whose weights sum to 1 over all processes, and
    `sum_across`. The step, v and the product are sums over processes; u and d being the same
    everywhere, the result is that of the joined batch.
    """
    check_method(method)
    plain_fn = first_order_loss_fn or loss_fn
    u, d = as_leaves(upstream), as_leaves(downstream)
    keep = method == "exact" and len(train_parts) == 1
    step: dict[str, Tensor] = {}
    for batch, weight in train_parts:
        loss = (loss_fn if keep else plain_fn)(u, d, batch)
        part = gradient_of(loss * (weight * loss_scale), d, create_graph=keep)
        step = part if not step else {name: step[name] + part[name] for name in d}
    whole = _summed({name: value.detach() for name, value in step.items()}, sum_across)
    ahead = {name: d[name].detach() - (inner_lr / loss_scale) * whole[name] for name in d}
    v = _summed(_validation_gradient(plain_fn, upstream, ahead, val_parts, loss_scale), sum_across)
    size = torch.stack([value.abs().amax() for value in v.values()]).amax()
    if not size > 0:
        return {name: torch.zeros_like(value) for name, value in u.items()}
    # The product is linear in v: at unit size it survives half precision.
    direction = {name: value / size.to(value) for name, value in v.items()}
    total: dict[str, Tensor] = {}
    for batch, weight in train_parts:
        scaled = _scaled(
            plain_fn if method == "finite_difference" else loss_fn, weight * loss_scale
        )
        part = mixed_product(
            scaled, u, d, batch, direction, method=method, gradient=step if keep else None
        )
        total = part if not total else {name: total[name] + part[name] for name in u}
    total = _summed(total, sum_across)
    factor = -inner_lr * size / loss_scale
    return {name: factor.to(value) * value for name, value in total.items()}


def _validation_gradient(
    loss_fn: LossFunction,
    upstream: Parameters,
    ahead: Parameters,
    parts: Sequence[Part],
    loss_scale: float,
) -> dict[str, Tensor]:
    """`v = grad_{d_hat} loss(u_hat, d_hat; val)`, with u_hat a constant."""
    constant = {name: value.detach() for name, value in upstream.items()}
    leaves = as_leaves(ahead)
    total = {name: torch.zeros_like(value) for name, value in leaves.items()}
    for batch, weight in parts:
        loss = loss_fn(constant, leaves, batch) * (weight * loss_scale)
        for name, value in gradient_of(loss, leaves, create_graph=False).items():
            total[name] = total[name] + value / loss_scale
    return total


def _summed(values: dict[str, Tensor], sum_across: SumNamed | None) -> dict[str, Tensor]:
    return values if sum_across is None else sum_across(values)


def _scaled(loss_fn: LossFunction, factor: float) -> LossFunction:
    def scaled(upstream: dict[str, Tensor], downstream: dict[str, Tensor], batch: Any) -> Tensor:
        return loss_fn(upstream, downstream, batch) * factor

    return scaled
