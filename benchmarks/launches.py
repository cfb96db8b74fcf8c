"""What a pass launches and what the host reads of it, counted on any device.

Counts do not depend on the machine: an operator is what a GPU would start a kernel for (fused and
foreach ones count once), a view is what only describes memory, a host read is a value that the host
waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = frozenset(
    {"_local_scalar_dense", "nonzero", "_unique2", "bincount", "equal", "is_nonzero"}
    | {"masked_select", "unique_dim", "unique_consecutive"}
)
ALLOCATIONS = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"})


@dataclass
class Launches:
    """Counts of a run; `products` are multiply-adds of matrix products and convolutions."""

    operators: int = 0
    views: int = 0
    host_reads: int = 0
    products: int = 0
    names: Counter[str] = field(default_factory=Counter)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Launches()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        returned = func._schema.returns
        alias = returned[0].alias_info if returned else None
        is_view = alias is not None and not alias.is_write
        if name in HOST_READS:
            self.found.host_reads += 1
        if is_view or name in ALLOCATIONS or name in ("_unsafe_view", "detach", "_reshape_alias"):
            self.found.views += 1
        else:
            self.found.operators += 1
            self.found.names[name] += 1
            self.found.products += _products(name, args, output)
        return output


def count_launches(run: Callable[[], object]) -> Launches:
    """Run once and count."""
    with _Counting() as counting:
        run()
    return counting.found


def _products(name: str, args: tuple, output: Any) -> int:
    if name in ("mm", "bmm"):
        return output.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm"):
        return output.numel() * args[1].shape[-1]
    if name in ("convolution", "mkldnn_convolution"):
        weight: Tensor = args[1]
        return output.numel() * weight[0].numel()
    if name == "convolution_backward":
        gradient, _, weight = args[:3]
        wanted = sum(part is not None for part in output[:2])
        return wanted * gradient.numel() * weight[0].numel()
    return 0


def describe(found: Launches) -> str:
    """A line for a table."""
    return (
        f"{found.operators:,} operators + {found.views:,} views, {found.host_reads} host reads, "
        f"{found.products / 1e9:.2f} G products"
    )
