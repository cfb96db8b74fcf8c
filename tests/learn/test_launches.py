"""What an iteration launches does not grow, depend on the routing or wait for the host."""

from __future__ import annotations

import pytest
import torch

from benchmarks.launches import count_launches
from benchmarks.udl import new_stepper
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.neurons import force_form

MOST = {"plain": (800, 650), "udl": (3000, 2500)}


def iteration(kind, estimator="selected", seed=0):
    """One of the default head's at a small extent; counts do not depend on it."""
    torch.manual_seed(seed)
    head = DSTSHead(16, 5, width=8, routing_gradient=estimator)
    with torch.no_grad():
        head.project_out.weight.normal_(std=0.1)
    stepper = new_stepper(head, "exact")
    train, val = (
        FeatureBatch(torch.randn(12, 16, 2, 3, 3), torch.arange(12) % 5, torch.arange(12) + first)
        for first in (0, 12)
    )
    if kind == "plain":
        return lambda: stepper.plain_step(train)
    return lambda: stepper.udl_step(train, val, inner_lr=0.01)


def counted(*arguments, **options):
    with force_form("columns"):
        run = iteration(*arguments, **options)
        run()  # makes the optimisers' state
        return count_launches(run)


@pytest.mark.parametrize("kind", ["plain", "udl"])
def test_an_iteration_has_few_launches_and_no_host_read(kind):
    found = counted(kind)
    operators, views = MOST[kind]
    assert found.operators <= operators, found.names.most_common(12)
    assert found.views <= views
    assert found.host_reads == 0


@pytest.mark.parametrize("estimator", ["selected", "dense"])
@pytest.mark.parametrize("kind", ["plain", "udl"])
def test_the_routing_changes_no_launch(kind, estimator):
    first, second = (counted(kind, estimator, seed=seed) for seed in (1, 2))
    assert first.names == second.names and first.host_reads == 0


def test_the_dense_estimator_costs_what_its_count_says():
    """Products over all neurons: psi of step 1 and 4 for its derivatives, and psi of steps 2 and 3.
    Autograd on the sum itself took 10."""
    num_positions, width, taps = 2 * 3 * 3, 8, 9 + 3
    operators = 3 * 12 * num_positions * taps * width * 10 * width
    fusions = 2 * 12 * num_positions * width * 10 * width  # the last layer's are pooled
    selected, dense = (counted("udl", estimator).products for estimator in ("selected", "dense"))
    assert (dense - selected) / (operators + fusions) == pytest.approx(7, abs=0.3)
