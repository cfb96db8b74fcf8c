"""Activation checkpointing: a stage's activations are dropped and computed again when needed.

Enters: modules. Leaves: the same modules, which in passes that are differentiated keep only their
inputs (Chen et al. 2016, arXiv 1604.06174; `torch.utils.checkpoint`, non-reentrant, which may be
differentiated twice).

A stage is computed again with the parameter values of its own pass: UDL asks for gradients at
values that the module itself does not hold (`functional_call`), and when the recomputation comes,
the module has its own again. Running statistics of batch norms move in the first computation only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def statistics_still(module: nn.Module) -> Iterator[None]:
    """Within the block running statistics of batch norms below `module` do not move."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def compute_twice(modules: Iterable[nn.Module]) -> None:
    """Let each of `modules` drop its activations in passes that are differentiated."""
    for module in modules:
        module.forward = _Recomputed(module)


class _Recomputed:
    """The forward of a module whose activations are not kept."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._forward: Callable[..., Any] = module.forward
        self._is_inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_inside or not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        # The values of this pass, be they the module's own or not.
        values = dict(self._module.named_parameters())
        return checkpoint(
            self._run, values, args, kwargs, use_reentrant=False, context_fn=self._contexts
        )

    def _run(self, values: dict[str, Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self._is_inside = True
        try:
            return functional_call(self._module, values, args, kwargs)
        finally:
            self._is_inside = False

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), statistics_still(self._module)
