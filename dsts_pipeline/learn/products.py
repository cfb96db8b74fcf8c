"""The mixed Hessian-vector product of UDL, `d/du [grad_d loss(u, d) . v]`, three ways.

In units of one forward pass (a backward pass by all parameters costs 2):
- `exact`, reverse over reverse: the gradient by d is built with a graph and differentiated again:
  forward 1, backward 2, backward through both about 4 to 5. Its first two also give step 1.
- `forward_over_reverse`: dual numbers carry the derivative along v through one forward and one
  backward pass by u: about 3 + 3. No graph of a backward pass is kept.
- `finite_difference`: two gradients by u at `d +- eps v` (Liu et al. 2019, DARTS, Eq. 8): 2 x 2 to
  2 x 3. Approximate; a discrete decision that flips between the two points is a jump.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

Parameters = Mapping[str, Tensor]
LossFunction = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]
Method = Literal["exact", "forward_over_reverse", "finite_difference"]

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
