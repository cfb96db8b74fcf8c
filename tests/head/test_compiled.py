"""The test-time head gives the same logits with less."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.head import DSTSHead, compile_head
from dsts_pipeline.head.neurons import force_form
from tests.reference.variants import VARIANTS, build, sample_input


@pytest.mark.parametrize("form", ["fixed", "columns", "grouped"])
@pytest.mark.parametrize("name", VARIANTS)
def test_same_logits(name, form):
    head, _ = build(name)
    head.eval()
    compiled = compile_head(head)
    maps, _ = sample_input(samples=9)
    wanted = head(maps)
    with force_form(form):
        torch.testing.assert_close(compiled(maps), wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(compiled(maps[:1]), wanted[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_choices_are_the_routes(name):
    head, _ = build(name)
    head.eval()
    maps, _ = sample_input(samples=9)
    choices: list[torch.Tensor] = []
    compile_head(head)(maps, choices=choices)
    layers = list(head.dsts_layers())
    if layers and all(layer.options.synapse for layer in layers):
        torch.testing.assert_close(torch.stack(choices, dim=1), head.routing(maps))
    else:
        assert not choices


def num_values(module):
    return sum(
        t.numel() for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()
    )


def test_smaller_by_what_the_gates_allow():
    head = DSTSHead.paper(16, 3, num_neurons=4, num_layers=2)
    with torch.no_grad():
        for layer in head.dsts_layers():
            layer.gate_logits.copy_(torch.where(torch.arange(16) < 12, 1.0, -1.0))
    compiled = compile_head(head.eval())
    # Of 16 channels 12 are temporal: S keeps 4 of 16 inputs, T 12; scores shrink to vectors.
    per_neuron = 16 * (9 * 4 + 3 * 12) + 2 * 16 + 16 * 16 + 16 + 1
    assert num_values(compiled) == 2 * 4 * per_neuron + 16 * 3 + 3
    assert num_values(compiled) < 0.5 * num_values(head)


@pytest.mark.parametrize("gate", [-1.0, 1.0])
def test_a_neuron_may_have_one_operator_only(gate):
    head = DSTSHead.paper(4, 3, num_neurons=2, num_layers=1).double().eval()
    with torch.no_grad():
        next(head.dsts_layers()).gate_logits.fill_(gate)
    maps = torch.randn(3, 4, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(compile_head(head)(maps), head(maps))
