"""Optimisers and schedules of the two kinds of parameters.

Enters: parameters and settings. Leaves: one `ScheduledOptimizer` for u and one for d. Recipes:
AdamW (the paper's for Swin) and SGD with momentum (for TPN).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.base.settings import LearningSettings, Precision


def learning_rate_factor(progress: float, how: LearningSettings) -> float:
    """Factor on the base learning rate at `progress` in [0, 1] of the training."""
    warmup = how.warmup_fraction
    if how.schedule == "constant":
        return 1.0
    if progress < warmup:
        start = 0.04 if how.schedule == "one_cycle" else 0.0
        return start + (1.0 - start) * progress / warmup
    if how.schedule == "steps":
        return how.step_factor ** sum(progress >= place for place in how.step_milestones)
    rest = (progress - warmup) / max(1.0 - warmup, 1e-12)
    return 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


class ScheduledOptimizer:
    """An optimiser whose learning rates follow a schedule over the whole training.

    Kernels and projections decay, vectors per neuron or channel do not.

    Args:
        parameters: What it updates, by name; may be empty.
        learning_rates: Of each of `parameters`, at the schedule's peak.
        how: Which optimiser, its schedule, decay and clipping.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        learning_rates: Mapping[str, float],
        how: LearningSettings,
    ) -> None:
        self.parameters = list(parameters.values())
        self.how = how
        self.optimizer: torch.optim.Optimizer | None = None
        groups = _groups(parameters, learning_rates, how.weight_decay)
        if not groups:
            return
        # On a GPU rates are tensors, so that a captured step has the rate of its own time.
        on_gpu = self.parameters[0].device.type == "cuda"
        if on_gpu:
            for group in groups:
                group["lr"] = torch.tensor(group["lr"], device=self.parameters[0].device)
        if how.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(groups, fused=True, capturable=on_gpu)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=how.momentum, fused=True)

    def set_progress(self, progress: float) -> float:
        """Set the learning rates at `progress` in [0, 1]; returns their common factor."""
        factor = learning_rate_factor(progress, self.how)
        for group in [] if self.optimizer is None else self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["peak"] * factor)
            else:
                group["lr"] = group["peak"] * factor
        return factor

    def step(self, gradients: Iterable[Tensor | None], skip: Tensor | None = None) -> None:
        """Clip the gradients, one per parameter and in their order, and update.

        Args:
            skip: A scalar; where it is 1 nothing is updated.
        """
        if self.optimizer is None:
            return
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else laid_out_like(gradient, parameter)
        if self.how.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.how.clip_norm)
        # What torch's own scaler hands to fused optimisers.
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """What the optimiser remembers of each parameter, as `<prefix><number>/<name>`."""
        state = {} if self.optimizer is None else self.optimizer.state_dict()["state"]
        return {
            f"{prefix}{number}/{name}": torch.as_tensor(value)
            for number, values in state.items()
            for name, value in values.items()
            if value is not None
        }

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave, without its prefix."""
        if self.optimizer is None:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            number, _, name = key.partition("/")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape:
                value = laid_out_like(value, parameter)
            state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def laid_out_like(values: Tensor, parameter: Tensor) -> Tensor:
    """`values`, a gradient or an optimiser's memory of one, in the layout of `parameter`.

    Fused kernels walk through memory: values in another layout (a permuted kernel's) would update
    what they do not belong to; torch 2.13 refuses that on a GPU alone.
    """
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter).copy_(values)


def _groups(
    parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of equal learning rate and decay."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decay = weight_decay if _decays(name) and parameter.ndim > 1 else 0.0
        rate = rates[name]
        options = {"params": [], "lr": rate, "peak": rate, "weight_decay": decay}
        groups.setdefault((rate, decay), options)["params"].append(parameter)
    return list(groups.values())


def _decays(name: str) -> bool:
    *owners, last = name.split(".")
    of_norm = bool(owners) and owners[-1].endswith("norm")
    return last.endswith("kernel") or (last == "weight" and not of_norm)


# ---- precision ------------------------------------------------------------------------------

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def forward_context(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for a forward pass; nothing for "float32".

    Casts are not cached: a cached cast belongs to one pass's graph, and UDL makes several passes
    with other values of the same parameters.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision], cache_enabled=False)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Within the block float32 products have torch's `precision`, "highest" to "medium"."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class LossScale:
    """Factor on the loss before backward passes: halved when gradients overflow, else grown.

    Args:
        value: The factor; 1 where the precision needs none.
        dynamic: Whether it moves.
        growth_interval: Good steps before it doubles.

    Attributes:
        value: A scalar on the device of the gradients where it moves, so that no step waits for
            it; else a number.
    """

    def __init__(
        self,
        value: float = 1.0,
        *,
        dynamic: bool = False,
        growth_interval: int = 500,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dynamic = dynamic
        self.growth_interval = growth_interval
        self.value: float | Tensor = value
        self.num_good = torch.zeros((), device=device)
        if dynamic:
            self.value = torch.full((), value, device=device)

    @classmethod
    def for_precision(cls, precision: Precision, device: torch.device | str = "cpu") -> LossScale:
        """A moving scale for float16, whose small gradients vanish otherwise; 1 for the rest."""
        return cls(2.0**14, dynamic=True, device=device) if precision == "float16" else cls()

    @torch.no_grad()
    def judge(self, gradients: Iterable[Tensor | None]) -> Tensor | None:
        """A scalar: 1 where a gradient is not finite, so that the step is to be left out, else 0.

        Adapts the scale. None where it does not move, and every step is made.
        """
        if not isinstance(self.value, Tensor):
            return None
        found = [gradient for gradient in gradients if gradient is not None]
        sizes = torch.stack([size.float() for size in torch._foreach_norm(found, float("inf"))])
        bad = sizes.isfinite().all().logical_not()
        num_good = self.num_good + 1
        grown = torch.where(num_good % self.growth_interval == 0, 2.0 * self.value, self.value)
        self.value.copy_(torch.where(bad, (self.value / 2.0).clamp(min=1.0), grown))
        self.num_good.copy_(torch.where(bad, torch.zeros_like(num_good), num_good))
        return bad.float()

    def state(self) -> dict[str, Any]:
        """Plain values, for `load`."""
        return {"value": float(self.value), "num_good": int(self.num_good)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from saved values."""
        self.num_good.fill_(state["num_good"])
        if isinstance(self.value, Tensor):
            self.value.fill_(state["value"])
