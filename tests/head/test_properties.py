"""What must hold whatever the numbers: independence, symmetry, distributions, zero gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.routing import (
    LayerNoise,
    balance_loss,
    choose,
    draw_layer_noise,
    sample_gates,
)
from tests.reference.variants import VARIANTS, build, sample_input

ROUTED = [n for n, c in VARIANTS.items() if c.get("synapse", True) and c.get("num_layers") != 0]


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_does_not_depend_on_the_rest_of_the_batch(name):
    head, _ = build(name)
    head.eval()
    maps, _ = sample_input(samples=9)
    together = head(maps)
    alone = torch.cat([head(one[None]) for one in maps])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head(maps.flip(0)).flip(0), together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ROUTED)
def test_permuting_the_neurons_changes_nothing(name):
    head, _ = build(name)
    maps, _ = sample_input(samples=9)
    noise = head.draw_noise(len(maps), torch.Generator().manual_seed(0))
    before = head(maps, noise, update_statistics=False), head.eval()(maps)
    order = torch.randperm(head.config["num_neurons"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in head.dsts_layers():
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if not name.startswith(("shared_", "common.")):
                    tensor.copy_(tensor[order].clone())
    moved = [reorder(one, order) if isinstance(one, LayerNoise) else one for one in noise]
    after = head.train()(maps, moved, update_statistics=False), head.eval()(maps)
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


def reorder(noise, order):
    """A layer's noise for neurons in another order; a common neuron's, the last row, stays."""
    rest = torch.arange(len(order), len(noise.gate_hard))
    rows = torch.cat([order, rest])
    return LayerNoise(noise.gumbel[:, order], noise.gate_normal[rows], noise.gate_hard[rows])


def test_routing_frequencies_follow_the_softmax():
    impulses = torch.tensor([0.5, -1.0, 1.2, 0.0])
    num_draws = 40_000
    noise = draw_layer_noise(num_draws, 4, 1, generator=torch.Generator().manual_seed(0))
    choice, _ = choose(impulses.expand(num_draws, -1), noise.gumbel, 1.0)
    expected = impulses.softmax(0) * num_draws
    statistic = ((torch.bincount(choice, minlength=4) - expected).square() / expected).sum()
    assert statistic < 16.27  # 99.9 % point of chi-square with 3 degrees of freedom


def test_gates_follow_the_normal_distribution():
    logits = torch.tensor([[-1.5, -0.3, 0.0, 0.8, 2.0]])
    generator, total, num_draws = torch.Generator().manual_seed(0), torch.zeros(5), 20_000
    noise = draw_layer_noise(1, num_draws, 5, generator=generator)
    hard = sample_gates(
        logits.expand(num_draws, -1), noise.gate_normal, torch.ones(num_draws).bool(), 1.0
    )
    total = hard.sum(0)
    probability = 0.5 * (1.0 + torch.erf(logits[0] / math.sqrt(2.0)))
    deviation = (num_draws * probability * (1 - probability)).sqrt()
    assert ((total - num_draws * probability).abs() < 4 * deviation).all()
    assert abs(noise.gate_hard.float().mean() - 0.5) < 0.02


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ["paper", "selected", "conv3d", "conv3d-selected", "fixed"])
def test_unchosen_neurons_get_exactly_zero(name, first_order):
    head, config = build(name)
    maps, labels = sample_input(samples=6)
    noise = [
        one._replace(gumbel=one.gumbel + torch.tensor([0.0, -1e3, 0.0]))
        for one in head.draw_noise(6, torch.Generator().manual_seed(0))
    ]
    logits, records = head(maps, noise, first_order=first_order, with_records=True)
    # Bring the relaxed probability of the unchosen neuron back: tau -> the noise is not too far.
    F.cross_entropy(logits, labels).backward()
    assert all((record.choice != 1).all() for record in records)
    for parameter_name, parameter in head.named_parameters():
        if parameter_name.startswith("layers") and "scoring" not in parameter_name:
            assert torch.count_nonzero(parameter.grad[1]) == 0, parameter_name


@pytest.mark.parametrize(("name", "alive"), [("paper", True), ("selected", False)])
def test_unchosen_scoring_kernels_learn_by_the_dense_estimator_alone(name, alive):
    head, _ = build(name)
    maps, labels = sample_input(samples=1)
    for first_order in (False, True):
        head.zero_grad()
        noise = head.draw_noise(1, torch.Generator().manual_seed(0))
        logits, records = head(maps, noise, first_order=first_order, with_records=True)
        F.cross_entropy(logits, labels).backward()
        for layer, record in zip(head.dsts_layers(), records, strict=True):
            chosen = int(record.choice[0])
            for neuron in range(layer.num_neurons):
                gradient = layer.scoring_kernel.grad[neuron]
                if neuron == chosen or alive:
                    assert gradient.abs().max() > 0
                else:
                    assert torch.count_nonzero(gradient) == 0


def test_balance_loss_is_one_where_use_is_even_and_n_where_one_gets_all():
    impulses = 50.0 * torch.eye(4)
    assert balance_loss(torch.arange(4), impulses).item() == pytest.approx(1.0)
    one = impulses[:1].expand(4, -1)
    assert balance_loss(torch.zeros(4, dtype=torch.int64), one).item() == pytest.approx(4.0)


def test_no_layer_is_the_plain_classifier():
    head = DSTSHead.paper(6, 3, num_layers=0, width=4)
    assert {name for name, _ in head.named_parameters()} == {"classifier.weight", "classifier.bias"}
    maps = torch.randn(4, 6, 2, 3, 3)
    torch.testing.assert_close(head(maps), head.classifier(maps.mean((2, 3, 4))))
    assert head.routing(maps).shape == (4, 0)


def test_documented_names_and_shapes():
    layer = next(DSTSHead.paper(8, 3, num_neurons=4, num_layers=1, width=6).dsts_layers())
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters() if "norm" not in name}
    assert shapes == {
        "scoring_kernel": (4, 6, 6),
        "spatial_kernel": (4, 6, 6, 3, 3),
        "temporal_kernel": (4, 6, 6, 3),
        "gate_logits": (4, 6),
        "fusion_kernel": (4, 6, 6),
    }
