"""Upstream-Downstream Learning: the gradient of its meta-update step (paper 3.3, Eq. 9-11).

Enters: a loss of upstream and downstream parameters and two batches. Leaves: gradients by name.
Nothing here knows of DSTS.

Step 1 (Eq. 9): `d_hat(u) = d - alpha grad_d loss(u, d; train)`. Step 2 (Eq. 10) differentiates
`loss(u_hat, d_hat(u); val)` by u, with u_hat a constant. With
`v = grad_{d_hat} loss(u_hat, d_hat; val)` that is a mixed Hessian-vector product,
`-alpha d/du [grad_d loss(u, d; train) . v]`: v's graph need not be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from dsts_pipeline.base.settings import Method

# ---- the mixed Hessian-vector product ------------------------------------------------------------
#
# `d/du [grad_d loss(u, d) . v]`, three ways. In units of one forward pass (a backward pass by all
# parameters costs 2):
# - `exact`, reverse over reverse: the gradient by d is built with a graph and differentiated again:
#   forward 1, backward 2, backward through both about 4 to 5. Its first two also give step 1.
# - `forward_over_reverse`: dual numbers carry the derivative along v through one forward and one
#   backward pass by u: about 3 + 3. No graph of a backward pass is kept.
# - `finite_difference`: two gradients by u at `d +- eps v` (Liu et al. 2019, DARTS, Eq. 8): 2 x 2
#   to 2 x 3. Approximate; a discrete decision that flips between the two points is a jump.

Parameters = Mapping[str, Tensor]
LossFunction = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]

FIRST_ORDER_REFUSAL = (
    "UDL without its second-order term has no meta-update: u enters step 2 only through the "
    "simulated step, so the first-order gradient is exactly zero; use 'exact', "
    "'forward_over_reverse' or 'finite_difference', or switch UDL off for one ordinary step"
)


def check_method(method: str) -> None:
    """Refuse an unknown method, and the first-order one with the reason.

    Raises:
        ValueError: It is none of `Method`.
    """
    if method == "first_order":
        raise ValueError(FIRST_ORDER_REFUSAL)
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is unknown; expected one of {get_args(Method)}")


def mixed_product(
    loss_fn: LossFunction,
    u: dict[str, Tensor],
    d: dict[str, Tensor],
    batch: Any,
    direction: Parameters,
    *,
    method: Method,
    gradient: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`d/du [grad_d loss(u, d; batch) . direction]` for every entry of u.

    Args:
        u, d: Leaves that require gradients.
        direction: v, by d's names.
        gradient: `grad_d loss` with its graph, if there is one already ("exact" only).
    """
    if method == "forward_over_reverse":
        return _forward_over_reverse(loss_fn, u, d, batch, direction)
    if method == "finite_difference":
        return _finite_difference(loss_fn, u, d, batch, direction)
    if gradient is None:
        gradient = gradient_of(loss_fn(u, d, batch), d, create_graph=True)
    names = [name for name in d if gradient[name].requires_grad]
    if not names:
        return {name: torch.zeros_like(value) for name, value in u.items()}
    found = torch.autograd.grad(
        [gradient[name] for name in names],
        list(u.values()),
        [direction[name].to(gradient[name]) for name in names],
        allow_unused=True,
    )
    return _named(u, found)


def _forward_over_reverse(
    loss_fn: LossFunction,
    u: dict[str, Tensor],
    d: dict[str, Tensor],
    batch: Any,
    direction: Parameters,
) -> dict[str, Tensor]:
    with forward_ad.dual_level():
        # The direction is constant in d, and only gradients by u are asked for.
        dual = {
            name: forward_ad.make_dual(value.detach(), direction[name].to(value))
            for name, value in d.items()
        }
        gradient = gradient_of(loss_fn(u, dual, batch), u, create_graph=False)
        tangents = {name: forward_ad.unpack_dual(value).tangent for name, value in gradient.items()}
    return {
        name: torch.zeros_like(value) if tangents[name] is None else tangents[name].detach()
        for name, value in u.items()
    }


def _finite_difference(
    loss_fn: LossFunction,
    u: dict[str, Tensor],
    d: dict[str, Tensor],
    batch: Any,
    direction: Parameters,
) -> dict[str, Tensor]:
    norm = torch.stack([value.square().sum() for value in direction.values()]).sum().sqrt()
    eps = 0.01 / float(norm)
    sides = []
    for sign in (1.0, -1.0):
        moved = {
            name: value.detach() + sign * eps * direction[name].to(value)
            for name, value in d.items()
        }
        sides.append(gradient_of(loss_fn(u, moved, batch), u, create_graph=False))
    ahead, behind = sides
    return {name: (ahead[name] - behind[name]) / (2.0 * eps) for name in u}


def as_leaves(parameters: Parameters) -> dict[str, Tensor]:
    """New leaves that require gradients, sharing memory with `parameters`."""
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}


def gradient_of(loss: Tensor, by: dict[str, Tensor], *, create_graph: bool) -> dict[str, Tensor]:
    """Gradient of `loss` by name; zero where it does not depend on an entry."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in by.items()}
    found = torch.autograd.grad(
        loss, list(by.values()), create_graph=create_graph, allow_unused=True
    )
    return _named(by, found)


def _named(by: dict[str, Tensor], found: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(by.items(), found, strict=True)
    }


# ---- the meta-gradient ---------------------------------------------------------------------------

WeightedPart = tuple[Any, float]
"""A micro-batch and its weight in the mean; the weights of a batch sum to 1."""

SumNamed = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Sums gradients by name over processes; no derivative passes through it."""


def meta_gradient(
    loss_fn: LossFunction,
    upstream: Parameters,
    downstream: Parameters,
    train_batch: Any,
    val_batch: Any,
    inner_lr: float | Tensor,
    *,
    method: Method = "exact",
    first_order_loss_fn: LossFunction | None = None,
    loss_scale: float | Tensor = 1.0,
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
    train_parts: Sequence[WeightedPart],
    val_parts: Sequence[WeightedPart],
    inner_lr: float | Tensor,
    *,
    method: Method = "exact",
    first_order_loss_fn: LossFunction | None = None,
    loss_scale: float | Tensor = 1.0,
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
    u = as_leaves(upstream)
    d = as_leaves(downstream)
    keep = method == "exact" and len(train_parts) == 1
    step: dict[str, Tensor] = {}
    for batch, weight in train_parts:
        loss = (loss_fn if keep else plain_fn)(u, d, batch)
        part = gradient_of(loss * (weight * loss_scale), d, create_graph=keep)
        step = part if not step else {name: step[name] + part[name] for name in d}
    whole = _summed({name: value.detach() for name, value in step.items()}, sum_across)
    ahead = {
        name: value.detach() - part
        for (name, value), part in zip(
            d.items(), _times(whole, inner_lr / loss_scale).values(), strict=True
        )
    }
    v = _summed(_validation_gradient(plain_fn, upstream, ahead, val_parts, loss_scale), sum_across)
    # The product is linear in v: at unit size it survives half precision. Of a v that is zero the
    # product is zero at any size.
    sizes = torch._foreach_norm(list(v.values()), float("inf"))
    size = torch.stack(list(sizes)).amax().double()
    size = size.clamp(min=torch.finfo(torch.float32).tiny)
    direction = _times(v, 1.0 / size)
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
    return _times(total, -inner_lr * size / loss_scale)


def _times(values: dict[str, Tensor], factor: float | Tensor) -> dict[str, Tensor]:
    """`values` times `factor`, in few launches."""
    if isinstance(factor, Tensor):
        factor = factor.to(next(iter(values.values())))
    return dict(zip(values, torch._foreach_mul(list(values.values()), factor), strict=True))


def _validation_gradient(
    loss_fn: LossFunction,
    upstream: Parameters,
    ahead: Parameters,
    parts: Sequence[WeightedPart],
    loss_scale: float | Tensor,
) -> dict[str, Tensor]:
    """`v = grad_{d_hat} loss(u_hat, d_hat; val)`, with u_hat a constant."""
    constant = {name: value.detach() for name, value in upstream.items()}
    leaves = as_leaves(ahead)
    total: dict[str, Tensor] = {}
    for batch, weight in parts:
        loss = loss_fn(constant, leaves, batch) * (weight * loss_scale)
        found = gradient_of(loss, leaves, create_graph=False)
        if isinstance(loss_scale, Tensor) or loss_scale != 1.0:
            found = _times(found, 1.0 / loss_scale)
        total = {name: total[name] + found[name] for name in found} if total else found
    return total


def _summed(values: dict[str, Tensor], sum_across: SumNamed | None) -> dict[str, Tensor]:
    return values if sum_across is None else sum_across(values)


def _scaled(loss_fn: LossFunction, factor: float | Tensor) -> LossFunction:
    def scaled(upstream: dict[str, Tensor], downstream: dict[str, Tensor], batch: Any) -> Tensor:
        return loss_fn(upstream, downstream, batch) * factor

    return scaled
