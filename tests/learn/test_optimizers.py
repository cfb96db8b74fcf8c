"""Optimisers: gradients in any memory layout, steps that are left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsts_pipeline.base.settings import TrainSettings
from dsts_pipeline.learn.optimizers import ScheduledOptimizer


def updated(gradient, how, skip=None):
    parameter = nn.Parameter(torch.arange(12.0).view(3, 4))
    optimizer = ScheduledOptimizer({"a.kernel": parameter}, {"a.kernel": 0.1}, how)
    for _ in range(3):
        optimizer.step([gradient], skip)
    return parameter.detach()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_gradient_in_another_layout_updates_what_it_belongs_to(name):
    """torch's fused optimisers walk memory: given such a gradient as it is, they err in silence."""
    how = TrainSettings(optimizer=name, schedule="constant")
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    transposed = gradient.t().contiguous().t()
    assert transposed.stride() != gradient.stride()
    assert torch.equal(updated(transposed, how), updated(gradient, how))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_is_left_out_on_request(name):
    how = TrainSettings(optimizer=name, schedule="constant")
    gradient = torch.full((3, 4), float("inf"))
    assert torch.equal(updated(gradient, how, torch.ones(())), torch.arange(12.0).view(3, 4))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_memory_that_was_saved_belongs_to_its_values_again(name):
    """Checkpoints are contiguous, and a kernel need not be."""
    how = TrainSettings(optimizer=name, schedule="constant")
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for is_saved in (False, True):
        parameter = nn.Parameter(torch.arange(12.0).view(3, 4).t().contiguous().t())
        assert not parameter.is_contiguous()
        optimizer = ScheduledOptimizer({"a.kernel": parameter}, {"a.kernel": 0.1}, how)
        for _ in range(3):
            optimizer.step([gradient])
            if is_saved:
                saved = {key: value.contiguous() for key, value in optimizer.tensors("").items()}
                optimizer = ScheduledOptimizer({"a.kernel": parameter}, {"a.kernel": 0.1}, how)
                optimizer.load_tensors(saved)
        found.append(parameter.detach().clone())
    assert torch.equal(*found)
