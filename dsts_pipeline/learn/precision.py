"""Half precision: which type the forward pass runs in, and the loss scale that float16 needs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "float16"]
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def forward_context(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for a forward pass; nothing for "float32".

    Casts are not cached: a cached cast belongs to one pass's graph, and UDL makes several passes
    with other values of the same parameters.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision], cache_enabled=False)


@dataclass
class LossScale:
    """Factor on the loss before backward passes: halved when gradients overflow, else grown.

    Args:
        value: The factor; 1 where the precision needs none.
        dynamic: Whether it moves.
        growth_interval: Good steps before it doubles.
    """

    value: float = 1.0
    dynamic: bool = False
    growth_interval: int = 500
    num_good: int = 0

    @classmethod
    def for_precision(cls, precision: Precision) -> LossScale:
        """A moving scale for float16, whose small gradients vanish otherwise; 1 for the rest."""
        return cls(2.0**14, dynamic=True) if precision == "float16" else cls()

    def accepts(self, gradients: Iterable[Tensor | None]) -> bool:
        """Whether all gradients are finite, so that the step may be made; adapts the scale."""
        if not self.dynamic:
            return True
        found = [gradient for gradient in gradients if gradient is not None]
        finite = bool(torch.stack([torch.isfinite(g).all() for g in found]).all())
        if not finite:
            self.value, self.num_good = max(self.value / 2.0, 1.0), 0
            return False
        self.num_good += 1
        if self.num_good % self.growth_interval == 0:
            self.value *= 2.0
        return True
