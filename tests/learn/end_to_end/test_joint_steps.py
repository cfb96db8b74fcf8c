"""UDL with the backbone among the downstream parameters, against the equations done literally."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.learn.finetune import JointObjective
from dsts_pipeline.learn.steps import downstream_of, upstream_of
from dsts_pipeline.learn.udl import meta_gradient
from tests.learn.end_to_end.tiny import literal_map, new_batch, new_model, stepper_of
from tests.reference.literal_udl import literal_meta_gradient
from tests.reference.variants import reference_of

BACKBONE = "backbone.model.recognizer.backbone."
ALPHA, RATE = 0.2, 0.1


def literal_step(model, inner_step, train, val, noise):
    """All parameters after the three steps, plain SGD; `inner_step` as `finetune.inner_step`."""
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    buffers = {n.removeprefix(BACKBONE): v for n, v in start.items() if n.startswith(BACKBONE)}

    def loss(u, d, one):
        batch, draws = one
        values = {**u, **d}
        of_head = {n.removeprefix("head."): v for n, v in values.items() if n.startswith("head.")}
        of_net = {n.removeprefix(BACKBONE): v for n, v in values.items() if n.startswith(BACKBONE)}
        maps = literal_map(batch.maps, buffers | of_net)
        reference = reference_of(model.head, model.head.config, of_head)
        logits = reference.forward(maps, draws, training=True, update=False)
        return F.cross_entropy(logits, batch.labels)

    u = {name: start[name] for name in upstream_of(model)}
    d = {name: start[name] for name in downstream_of(model)}
    moved = d if inner_step == "all" else {n: v for n, v in d.items() if n.startswith("head.")}
    meta = literal_meta_gradient(loss, u, moved, (train, noise[0]), (val, noise[1]), ALPHA)
    u_new = {n: u[n] - RATE * meta[n] for n in u}
    leaves = {n: value.clone().requires_grad_() for n, value in d.items()}
    found = torch.autograd.grad(loss(u_new, leaves, (train, noise[0])), list(leaves.values()))
    return u_new | {n: d[n] - RATE * g for n, g in zip(d, found, strict=True)}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("inner_step", ["head", "all"])
@pytest.mark.parametrize("variant", ["paper", "house-default"])
def test_joint_udl_makes_the_papers_three_steps(variant, inner_step, recompute):
    """Every parameter of backbone and head, float64."""
    model = new_model(variant, recompute=recompute)
    train, val = new_batch(1), new_batch(2, 100)
    generator = torch.Generator().manual_seed(5)
    noise = [model.head.draw_noise(5, generator), model.head.draw_noise(5, generator)]
    expected = literal_step(copy.deepcopy(new_model(variant)), inner_step, train, val, noise)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepper_of(model, RATE, inner_step=inner_step).udl_step(train, val, inner_lr=ALPHA)
    for name, value in expected.items():
        found = model.get_parameter(name).detach()
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-10)
    moved = [name for name in expected if not torch.equal(before[name], expected[name])]
    assert any(name.startswith(BACKBONE) for name in moved)
    assert any("scoring_kernel" in name for name in moved)


def test_the_two_ways_differ_in_the_meta_update_alone():
    """By far more than the tolerance above, in u; step 3 is the same but for u'."""
    found = {}
    for inner_step in ("head", "all"):
        model = new_model()
        stepper = stepper_of(model, inner_step=inner_step)
        stepper.udl_step(new_batch(1), new_batch(2, 100), inner_lr=ALPHA)
        found[inner_step] = {n: p.detach() for n, p in upstream_of(model).items()}
    differences = [(found["all"][n] - found["head"][n]).abs().max() for n in found["all"]]
    assert max(differences) > 1e-6


def count_passes(model):
    counts = {"clips": 0}
    model.backbone.register_forward_pre_hook(
        lambda _, args: counts.__setitem__("clips", counts["clips"] + len(args[0]))
    )
    return counts


@pytest.mark.parametrize(("inner_step", "per_clip"), [("head", 1.0), ("all", 1.5)])
def test_how_often_a_clip_passes_the_backbone(inner_step, per_clip):
    """ "head" computes each map once; "all" those of the training clips twice."""
    model = new_model()
    counts = count_passes(model)
    stepper_of(model, inner_step=inner_step).udl_step(new_batch(1), new_batch(2, 100), inner_lr=0.1)
    assert counts["clips"] == per_clip * 10


@pytest.mark.parametrize("inner_step", ["head", "all"])
def test_parts_make_the_step_of_their_mean(inner_step):
    """Where nothing depends on the batch, going through it in parts changes nothing."""
    results = []
    for part_size in (None, 2):
        model = new_model("one-neuron")
        with torch.no_grad():
            for layer in model.head.dsts_layers():
                layer.gate_logits.fill_(50.0)  # saturated: no noise gets through
        model.head.eval()  # running statistics
        model.head.draw_noise = lambda *_: None
        stepper = stepper_of(model, inner_step=inner_step, part_size=part_size)
        stepper.udl_step(new_batch(1), new_batch(2, 100), inner_lr=ALPHA)
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_forward_over_reverse_agrees_with_the_exact_product(recompute):
    found = {}
    for name in ("exact", "forward_over_reverse"):
        model = new_model(recompute=recompute and name != "exact")
        objective = JointObjective(model)
        generator = torch.Generator().manual_seed(5)
        draws = [objective.draw(batch, generator) for batch in (new_batch(1), new_batch(2, 100))]
        u, d = upstream_of(model), downstream_of(model)
        result = meta_gradient(objective, u, d, *draws, ALPHA, method=name)
        found[name] = torch.cat([value.flatten() for value in result.values()])
    torch.testing.assert_close(*found.values(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norms", ["frozen", "batch"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputing_changes_no_gradient_and_no_statistic(norms, dropout):
    """A plain step with activation checkpointing is the one without, dropout and norms included."""
    results = []
    for recompute in (False, True):
        options = {"norms": norms, "dropout": dropout > 0, "recompute": recompute}
        model = new_model(**options, seed=3)
        model.backbone.recognizer.backbone.drop.p = dropout
        stepper_of(model).plain_step(new_batch(1))
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-10, atol=1e-12)
    start = new_model(norms=norms, seed=3).state_dict()
    moved = {n for n in start if not torch.equal(start[n], results[0][n])}
    statistics = {n for n in start if n.startswith(BACKBONE) and n.endswith(("mean", "var"))}
    assert statistics & moved == (statistics if norms == "batch" else set())


def test_statistics_of_the_batch_move_once_in_a_udl_step():
    found = {}
    for kind in ("plain", "head", "all"):
        model = new_model(norms="batch")
        if kind == "plain":
            stepper_of(model).plain_step(new_batch(1))
        else:
            stepper = stepper_of(model, inner_step=kind)
            stepper.udl_step(new_batch(1), new_batch(2, 100), inner_lr=ALPHA)
        state = model.state_dict()
        found[kind] = state[f"{BACKBONE}stem.1.running_mean"]
    for kind in ("head", "all"):
        torch.testing.assert_close(found[kind], found["plain"])


def test_half_precision_stays_near_float32():
    found = {}
    for precision in ("float32", "bfloat16"):
        model = new_model("one-neuron-selected").float()
        stepper = stepper_of(model, precision=precision, inner_step="head")
        stepper.udl_step(new_batch(1), new_batch(2, 100), inner_lr=0.01)
        found[precision] = model.get_parameter(f"{BACKBONE}layer1.0.weight").detach()
    start = (
        new_model("one-neuron-selected")
        .float()
        .get_parameter(f"{BACKBONE}layer1.0.weight")
        .detach()
    )
    steps = [(value - start).flatten() for value in found.values()]
    assert torch.cosine_similarity(*steps, dim=0) > 0.95
