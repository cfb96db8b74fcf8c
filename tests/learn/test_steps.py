"""One iteration: disjoint batches, UDL's three updates, accumulation, clipping, half precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.base.settings import TrainSettings, UdlSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn.optimizers import LossScale, ScheduledOptimizer, learning_rate_factor
from dsts_pipeline.learn.steps import Objective, Stepper
from dsts_pipeline.learn.udl import meta_gradient
from tests.learn.recipes import sgd
from tests.reference.literal_udl import literal_meta_gradient
from tests.reference.variants import build, reference_of, sample_input


def stepper_of(head, rate=0.1, scale=None, **options):
    how = sgd(**options)

    def optimizer(parameters):
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, rate), how)

    return Stepper(
        Objective(head, how),
        optimizer(head.upstream_parameters()),
        optimizer(head.downstream_parameters()),
        UdlSettings(),
        scale=scale,
        generator=torch.Generator().manual_seed(5),
    )


def batch_of(seed, first_row=0, samples=6):
    maps, labels = sample_input(seed, samples)
    return FeatureBatch(maps, labels, torch.arange(samples) + first_row)


@pytest.mark.parametrize("name", ["paper", "house-default"])
def test_udl_makes_the_papers_three_steps(name):
    """Eq. 9-11 by hand on the literal head, plain SGD in both optimisers."""
    head, config = build(name)
    train, val = batch_of(1), batch_of(2, 100)
    start = {n: p.detach().clone() for n, p in head.named_parameters()}
    generator = torch.Generator().manual_seed(5)
    noise = [head.draw_noise(6, generator), head.draw_noise(6, generator)]

    def loss(u, d, one):
        batch, draws = one
        reference = reference_of(head, config, {**u, **d})
        logits = reference.forward(batch.maps, draws, training=True, update=False)
        return F.cross_entropy(logits, batch.labels)

    u = {n: start[n] for n in head.upstream_parameters()}
    d = {n: start[n] for n in head.downstream_parameters()}
    meta = literal_meta_gradient(loss, u, d, (train, noise[0]), (val, noise[1]), 0.2)
    u_new = {n: u[n] - 0.1 * meta[n] for n in u}
    leaves = {n: value.clone().requires_grad_() for n, value in d.items()}
    found = torch.autograd.grad(loss(u_new, leaves, (train, noise[0])), list(leaves.values()))
    expected = u_new | {n: d[n] - 0.1 * g for n, g in zip(d, found, strict=True)}

    stepper_of(head).udl_step(train, val, inner_lr=0.2)
    for parameter_name, parameter in head.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), expected[parameter_name], rtol=1e-9, atol=1e-9
        )


def test_batches_that_share_a_sample_are_refused():
    head, _ = build("paper")
    with pytest.raises(ValueError, match=r"share 2 samples \(row 4 first\)"):
        stepper_of(head).udl_step(batch_of(1), batch_of(2, 4), inner_lr=0.1)


@pytest.mark.parametrize("udl", [False, True])
def test_parts_weigh_by_their_size(udl):
    """Where nothing depends on the batch (one neuron, no norm statistics), parts change nothing."""
    results = []
    for part_size in (None, 4):
        head, _ = build("no-layer") if not udl else build("one-neuron")
        if udl:
            with torch.no_grad():
                for layer in head.dsts_layers():
                    layer.gate_logits.fill_(50.0)  # saturated: no noise gets through
            head.eval()  # running statistics
            head.draw_noise = lambda *_: None
        stepper = stepper_of(head, part_size=part_size)
        if udl:
            stepper.udl_step(batch_of(1), batch_of(2, 100), inner_lr=0.1)
        else:
            stepper.plain_step(batch_of(1))
        results.append(head.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-9, atol=1e-9)


def test_clipping_bounds_the_update():
    head, _ = build("paper")
    before = {n: p.detach().clone() for n, p in head.downstream_parameters().items()}
    stepper_of(head, rate=1.0, clip_norm=1e-3).udl_step(batch_of(1), batch_of(2, 100), inner_lr=0.1)
    moved = [(p - before[n]).square().sum() for n, p in head.downstream_parameters().items()]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("estimator", ["dense", "selected"])
def test_half_precision_with_a_loss_scale_stays_near_float32(estimator):
    torch.manual_seed(0)
    head = DSTSHead.paper(6, 4, num_neurons=1, num_layers=2, routing_gradient=estimator)
    batches = [batch_of(seed, 100 * seed, samples=16) for seed in (1, 2)]
    batches = [FeatureBatch(b.maps.float(), b.labels, b.rows) for b in batches]
    found = {}
    half = (("bfloat16", 1.0), ("bfloat16", 4096.0), ("float16", 1024.0))
    for precision, scale in (("float32", 1.0), *half):
        objective = Objective(head, sgd(precision=precision))
        generator = torch.Generator().manual_seed(0)
        draws = [objective.draw(batch, generator) for batch in batches]
        u, d = head.upstream_parameters(), head.downstream_parameters()
        gradient = meta_gradient(objective, u, d, *draws, 0.1, loss_scale=scale)
        gates = [value.flatten() for name, value in gradient.items() if "gate" in name]
        found[precision, scale] = torch.cat(gates)
    exact = found["float32", 1.0]
    for key in half:
        assert torch.cosine_similarity(found[key], exact, dim=0) > 0.97
        assert found[key].norm() == pytest.approx(float(exact.norm()), rel=0.15)


def test_overflow_skips_the_step_and_lowers_the_scale():
    head, _ = build("no-layer")
    before = head.classifier.weight.detach().clone()
    stepper = stepper_of(head, scale=LossScale(float("inf"), dynamic=True))
    stepper.plain_step(batch_of(1))
    assert torch.equal(head.classifier.weight, before)
    scale = LossScale(8.0, dynamic=True, growth_interval=2)
    good, bad = [torch.ones(2)], [torch.tensor([1.0, float("inf")])]
    assert scale.judge(bad) == 1.0 and scale.value == 4.0
    assert scale.judge(good) == 0.0 and scale.judge(good) == 0.0 and scale.value == 8.0


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_schedules_stay_within_their_peak(schedule):
    factors = [
        learning_rate_factor(step / 50, TrainSettings(schedule=schedule, warmup_fraction=0.2))
        for step in range(51)
    ]
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) >= 0.0
    if schedule != "constant":
        assert factors[10] == pytest.approx(1.0)
        assert factors[-1] == pytest.approx(0.0, abs=1e-9)


def test_first_order_is_refused_in_settings_with_the_reason():
    with pytest.raises(ValueError, match="without the second-order term is zero"):
        UdlSettings(method="first_order")
