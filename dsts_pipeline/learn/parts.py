"""The parts of a model that trains: its DSTS head, and what UDL calls upstream and downstream.

Enters: a head on cached maps, or a model with a backbone in front whose `head` is one. Leaves: the
head, and parameters by the model's own names.
"""

from __future__ import annotations

from torch import nn

from dsts_pipeline.head import DSTSHead


def head_of(model: nn.Module) -> nn.Module:
    """The head of a model that has a backbone in front; any other model is its own head."""
    inner = getattr(model, "head", None)
    return inner if isinstance(inner, nn.Module) else model


def dsts_of(model: nn.Module) -> DSTSHead | None:
    """The DSTS head in `model`, if there is one."""
    head = head_of(model)
    return head if isinstance(head, DSTSHead) else None


def upstream_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """u: scoring kernels and gate logits, by their names in `model` (paper 3.3)."""
    head = dsts_of(model)
    upstream = set() if head is None else {id(p) for p in head.upstream_parameters().values()}
    return {name: p for name, p in model.named_parameters() if id(p) in upstream}


def downstream_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """d: everything else that trains, by name in `model`; in end-to-end training the backbone's
    parameters too."""
    upstream = upstream_of(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in upstream
    }
