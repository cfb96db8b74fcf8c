"""UDL's meta-gradient of every variant of the head equals the literal one to 1e-9."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head.neurons import force_form
from dsts_pipeline.learn import meta_gradient
from dsts_pipeline.learn.steps import Draw, Objective
from tests.reference.literal_udl import literal_meta_gradient
from tests.reference.variants import VARIANTS, build, draw, reference_of, sample_input

WITH_UPSTREAM = [
    name
    for name, config in VARIANTS.items()
    if config.get("num_layers") != 0
    and (config.get("synapse", True) or config.get("specialization", "gated") == "gated")
]


@pytest.fixture(params=["fixed", "columns", "grouped"], autouse=True)
def form(request):
    with force_form(request.param):
        yield


@pytest.mark.parametrize("method", ["exact", "forward_over_reverse"])
@pytest.mark.parametrize("name", WITH_UPSTREAM)
def test_meta_gradient_equals_the_literal_one(name, method):
    head, config = build(name)
    u, d = head.upstream_parameters(), head.downstream_parameters()
    draws = []
    for seed in (3, 4):
        maps, labels = sample_input(seed)
        batch = FeatureBatch(maps, labels, torch.arange(len(labels)) + 100 * seed)
        draws.append(Draw(batch, draw(head, seed + 10)))

    def literal_loss(upstream, downstream, one):
        reference = reference_of(head, config, {**upstream, **downstream})
        logits = reference.forward(one.batch.maps, one.noise, training=True, update=False)
        return F.cross_entropy(logits, one.batch.labels)

    expected = literal_meta_gradient(literal_loss, u, d, *draws, 0.3)
    objective = Objective(head)
    cheap = objective.first_order_loss
    found = meta_gradient(objective, u, d, *draws, 0.3, method=method, first_order_loss_fn=cheap)
    assert set(found) == set(expected)
    for parameter_name, value in expected.items():
        torch.testing.assert_close(found[parameter_name], value, rtol=1e-9, atol=1e-11)
    if name == "paper":
        assert all(value.abs().max() > 1e-9 for value in expected.values())
