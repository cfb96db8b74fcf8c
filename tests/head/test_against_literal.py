"""The head equals the paper's equations done literally, to 1e-9, in every variant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.head.neurons import force_form
from tests.reference.variants import VARIANTS, build, draw, reference_of, sample_input

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
FORMS = ["fixed", "columns", "grouped"]  # of each sample's own operators


@pytest.fixture(params=FORMS, autouse=True)
def form(request):
    with force_form(request.param):
        yield


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_logits(name):
    head, config = build(name)
    head.eval()
    maps, _ = sample_input()
    reference = reference_of(head, config)
    torch.testing.assert_close(head(maps), reference.forward(maps), **CLOSE)
    if reference.choices:
        torch.testing.assert_close(head.routing(maps), torch.stack(reference.choices, 1))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_training_logits_gradients_and_statistics(name, first_order):
    head, config = build(name)
    maps, labels = sample_input()
    noise = draw(head)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in head.named_parameters()}
    reference = reference_of(head, config, parameters)
    reference_maps = maps.clone().requires_grad_()
    expected = reference.forward(reference_maps, noise, training=True)
    F.cross_entropy(expected, labels).backward()

    maps.requires_grad_()
    logits = head(maps, noise, first_order=first_order)
    F.cross_entropy(logits, labels).backward()
    torch.testing.assert_close(logits, expected, **CLOSE)
    torch.testing.assert_close(maps.grad, reference_maps.grad, **CLOSE)
    for parameter_name, parameter in head.named_parameters():
        wanted = parameters[parameter_name].grad
        wanted = torch.zeros_like(parameter) if wanted is None else wanted
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            found, wanted, msg=lambda m, n=parameter_name: f"{n}: {m}", **CLOSE
        )
    for buffer_name, buffer in head.named_buffers():
        if "running" in buffer_name:
            torch.testing.assert_close(buffer, reference.tensors[buffer_name], **CLOSE)


@pytest.mark.parametrize("name", ["paper", "selected", "standardized"])
def test_the_shared_noise_makes_routing_vary(name):
    head, config = build(name)
    maps, _ = sample_input(samples=16)
    reference = reference_of(head, config)
    reference.forward(maps, draw(head, samples=16), training=True, update=False)
    assert all(len(choice.unique()) > 1 for choice in reference.choices)


def test_statistics_stay_where_they_are_on_request():
    head, _ = build("paper")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head(sample_input()[0], update_statistics=False)
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]), name
