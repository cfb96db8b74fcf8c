"""Statistics over the joined batch of several processes.

Enters: a process's own sums or means, and a function that sums over processes and can be
differentiated (None: there is one process, and nothing is computed). Leaves: those of all samples.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

SumAcross = Callable[[Tensor], Tensor]


def total_of(values: Tensor, sum_across: SumAcross | None) -> Tensor:
    """`values` summed over processes."""
    return values if sum_across is None else sum_across(values)


def average_of(mean: Tensor, num_samples: int, sum_across: SumAcross | None) -> Tensor:
    """Mean over all processes' samples, given this process's `mean` over `num_samples`."""
    if sum_across is None:
        return mean
    total = sum_across(mean.new_tensor(float(num_samples)))
    return sum_across(mean * (num_samples / total))
