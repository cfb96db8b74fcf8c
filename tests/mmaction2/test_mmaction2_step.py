"""UDL's iteration on an mmaction2 recognizer, against learn's step and the literal reference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from dsts_pipeline.base.settings import UdlSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.steps import Objective, Stepper
from dsts_pipeline.mmaction2.loop import RecognizerStep
from tests.learn.recipes import sgd
from tests.mmaction2.joined_recognizer_step import two_steps
from tests.mmaction2.recognizers import batch_of, build, labels_of
from tests.reference.literal_udl import literal_meta_gradient
from tests.two_processes import run_in_two_processes

RATE, ALPHA = 0.1, 0.3


def wrapper_of(recognizer, clip=None):
    from mmengine.optim import OptimWrapper

    optimizer = torch.optim.SGD(recognizer.parameters(), lr=RATE)
    return OptimWrapper(optimizer, clip_grad=clip)


def step_of(recognizer, *, clip=None, **options):
    """The recognizer after one iteration, and what was logged."""
    udl = UdlSettings(method=options.pop("method", "exact"))
    generator = torch.Generator().manual_seed(3)
    step = RecognizerStep(recognizer, udl=udl, generator=generator, **options)
    torch.manual_seed(11)
    logged = step(wrapper_of(recognizer, clip), batch_of(1), batch_of(2), ALPHA)
    return logged


def noises_of(head, num_clips=4):
    """The noise that the step draws: of the training batch, then of the validation batch."""
    generator = torch.Generator().manual_seed(3)
    return head.draw_noise(num_clips, generator), head.draw_noise(num_clips, generator)


def maps_of(recognizer, batch):
    return recognizer.backbone(batch.inputs.flatten(0, 1))


@pytest.mark.parametrize("method", ["exact", "forward_over_reverse"])
def test_head_moves_as_by_learns_step_on_the_same_maps(method):
    recognizer = build()
    alone = copy.deepcopy(recognizer)
    batches = []
    for rows, seed in ((0, 1), (100, 2)):
        batch = batch_of(seed)
        with torch.no_grad():
            maps = maps_of(alone, batch)
        batches.append(FeatureBatch(maps, labels_of(batch), torch.arange(len(batch)) + rows))
    head = alone.cls_head.head

    def optimizer(parameters):
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, RATE), sgd())

    stepper = Stepper(
        Objective(head),
        optimizer(head.upstream_parameters()),
        optimizer(head.downstream_parameters()),
        UdlSettings(method=method),
        generator=torch.Generator().manual_seed(3),
    )
    result = stepper.udl_step(*batches, inner_lr=ALPHA)
    before = copy.deepcopy(recognizer.cls_head.head.state_dict())
    logged = step_of(recognizer, method=method)
    assert float(logged["loss"]) == pytest.approx(float(result.loss), rel=1e-12)
    moved = 0
    for name, value in recognizer.cls_head.head.state_dict().items():
        torch.testing.assert_close(value, head.state_dict()[name], rtol=1e-9, atol=1e-11)
        moved += not torch.equal(value, before[name])
    assert moved == len(before)  # every parameter and every statistic


@pytest.mark.parametrize("simulate_backbone", [False, True])
def test_step_is_the_literal_one(simulate_backbone):
    """The joint step in float64: explicit copies of d, differentiated through."""
    recognizer = build()
    reference, buffers = copy.deepcopy(recognizer), dict(recognizer.named_buffers())
    buffers = {name: value.clone() for name, value in buffers.items()}
    noise = dict(zip((1, 2), noises_of(reference.cls_head.head), strict=True))
    names = {f"cls_head.head.{name}" for name in reference.cls_head.head.upstream_parameters()}
    u = {n: p for n, p in reference.named_parameters() if n in names}
    d = {n: p for n, p in reference.named_parameters() if n not in names}

    def loss(upstream, downstream, seed):
        values = {**upstream, **downstream}
        parts = [{}, {}]
        for name, value in values.items():
            part = parts[0] if name.startswith("backbone.") else parts[1]
            part[name.removeprefix("backbone.").removeprefix("cls_head.head.")] = value
        batch = batch_of(seed)
        body, head = copy.deepcopy(reference.backbone), reference.cls_head.head
        maps = torch.func.functional_call(body, parts[0], (batch.inputs.flatten(0, 1),))
        logits = torch.func.functional_call(
            head, parts[1], (maps, noise[seed]), {"update_statistics": False, "first_order": False}
        )
        return cross_entropy(logits, labels_of(batch))

    moved = {n: p for n, p in d.items() if simulate_backbone or not n.startswith("backbone.")}
    still = {n: p.detach() for n, p in d.items() if n not in moved}
    meta = literal_meta_gradient(
        lambda up, down, seed: loss(up, {**still, **down}, seed), u, moved, 1, 2, ALPHA
    )
    next_u = {name: value.detach() - RATE * meta[name] for name, value in u.items()}
    last = torch.autograd.grad(loss(next_u, d, 1), list(d.values()), allow_unused=True)
    expected = next_u | {
        name: value.detach() - RATE * gradient
        for (name, value), gradient in zip(d.items(), last, strict=True)
    }
    step_of(recognizer, simulate_backbone=simulate_backbone)
    assert max(float(value.abs().max()) for value in meta.values()) > 1e-6
    for name, value in recognizer.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("simulate_backbone", [False, True])
def test_backbones_statistics_move_once_by_the_training_batch(simulate_backbone):
    recognizer = build()
    once = copy.deepcopy(recognizer)
    maps_of(once, batch_of(1))
    step_of(recognizer, simulate_backbone=simulate_backbone)
    expected = dict(once.backbone.named_buffers())
    for name, value in recognizer.backbone.named_buffers():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_all_passes_over_a_batch_drop_the_same_units():
    """Dual numbers run the training batch anew; with other units dropped, it would be another."""
    found = {}
    for method in ("exact", "forward_over_reverse"):
        recognizer = build()
        recognizer.backbone = torch.nn.Sequential(recognizer.backbone, torch.nn.Dropout(0.5))
        step_of(recognizer, simulate_backbone=True, method=method)
        found[method] = recognizer.cls_head.head.state_dict()
    for name, value in found["exact"].items():
        torch.testing.assert_close(
            found["forward_over_reverse"][name], value, rtol=1e-8, atol=1e-10
        )


def test_gradients_of_u_and_d_are_clipped_apart():
    recognizer = build()
    before = copy.deepcopy(recognizer)
    step_of(recognizer, clip={"max_norm": 1e-3})
    old = dict(before.named_parameters())
    upstream = {id(p) for p in recognizer.cls_head.head.upstream_parameters().values()}
    for belongs in (True, False):
        parts = [
            (value - old[name]).reshape(-1)
            for name, value in recognizer.named_parameters()
            if (id(value) in upstream) == belongs
        ]
        assert float(torch.cat(parts).norm()) == pytest.approx(RATE * 1e-3, rel=1e-3)


def test_frozen_parameters_stay():
    recognizer = build(backbone={"frozen_stages": 1})
    recognizer.train()
    frozen = {n: p.clone() for n, p in recognizer.named_parameters() if not p.requires_grad}
    step_of(recognizer, simulate_backbone=True)
    now = dict(recognizer.named_parameters())
    assert frozen and all(torch.equal(now[name], value) for name, value in frozen.items())


def test_half_precision_makes_nearly_the_same_step():
    found = {}
    for precision in ("float32", "bfloat16"):
        recognizer = build().float()
        before = recognizer.cls_head.head.classifier.weight.detach().clone()
        batches = [batch_of(1), batch_of(2)]
        for batch in batches:
            object.__setattr__(batch, "inputs", batch.inputs.float())
        step = RecognizerStep(
            recognizer, precision=precision, generator=torch.Generator().manual_seed(3)
        )
        step(wrapper_of(recognizer), *batches, ALPHA)
        found[precision] = recognizer.cls_head.head.classifier.weight - before
    torch.testing.assert_close(found["bfloat16"], found["float32"], rtol=0.2, atol=0.01)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    """All explicit sums are there: of the simulated step, of v, of the product, of the update."""
    found_by_rank = run_in_two_processes("tests.mmaction2.joined_recognizer_step", tmp_path)
    expected = two_steps(0, 1)
    for found in found_by_rank:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-9)
