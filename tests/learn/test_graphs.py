"""Iterations that are captured and replayed change nothing, bit for bit.

A CUDA graph does on a replay what was launched in the capture, on the same memory, and nothing
that Python decided in between. `ReplayedOperators` does the same with a CPU's operators.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsts_pipeline.base.settings import TrainSettings, UdlSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.neurons import force_form
from dsts_pipeline.learn.graphs import NUM_WARM_UPS, IterationGraphs
from dsts_pipeline.learn.optimizers import LossScale, ScheduledOptimizer
from dsts_pipeline.learn.steps import Objective, Stepper, mix_batch

RANDOM = {"normal_", "uniform_", "exponential_", "bernoulli_", "randn", "rand", "randint"}


class ReplayedOperators(TorchDispatchMode):
    """Captures operators without their effect on tensors from outside, and replays them."""

    def __init__(self):
        super().__init__()
        self.steps = []
        self.kept = {}
        self.num_replays = 0

    def warm_up(self, make):
        return make()

    def capture(self, make):
        with self:
            found = make()
        with torch.no_grad():
            for tensor, value in self.kept.values():
                tensor.copy_(value)
        return found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            raise RuntimeError("operation not permitted when stream is capturing")
        assert name not in RANDOM, f"{name} would be drawn once and for all"
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            for leaf in tree_leaves(given):
                self.kept.setdefault(id(leaf), (leaf, leaf.clone()))
        output = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, output))
        return output

    def replay(self):
        self.num_replays += 1
        with torch.no_grad():
            for func, args, kwargs, output in self.steps:
                again = func(*args, **kwargs)
                for place, value in zip(tree_leaves(output), tree_leaves(again), strict=True):
                    if not isinstance(place, torch.Tensor):
                        continue
                    if place.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                        place.copy_(value)


def batch_of(number, size=6):
    generator = torch.Generator().manual_seed(number)
    maps = torch.randn(size, 6, 2, 3, 3, generator=generator)
    labels = torch.randint(0, 4, (size,), generator=generator)
    return FeatureBatch(maps, labels, torch.arange(size) + 100 * number)


def train(settings, graphs, *, udl=True, num_steps=8, mixup=False, **how):
    """The head, the losses and the loss scale after some iterations, the last of another size."""
    torch.manual_seed(0)
    head = DSTSHead(6, 4, **{"num_neurons": 3, "num_layers": 2, "width": 5, **settings})
    options = TrainSettings(schedule="constant", **how)

    def optimizer(parameters):
        return ScheduledOptimizer(parameters, dict.fromkeys(parameters, 0.01), options)

    scale = LossScale(64.0, dynamic=True, growth_interval=3) if "precision" in how else None
    stepper = Stepper(
        Objective(head, options),
        optimizer(head.upstream_parameters()),
        optimizer(head.downstream_parameters()),
        UdlSettings(redraw_noise=mixup),
        scale=scale,
        generator=torch.Generator().manual_seed(1),
        graphs=graphs,
    )
    losses = []
    with force_form("columns"):
        for number in range(num_steps):
            size = 4 if number == num_steps - 1 else 6
            first = batch_of(2 * number, size)
            if mixup:
                first = mix_batch(first, alpha=0.4, seed=number)
            if udl:
                second = batch_of(2 * number + 1, size)
                result = stepper.udl_step(first, second, inner_lr=0.05 + 0.01 * number)
            else:
                result = stepper.plain_step(first)
            losses.append(float(result.loss))
    return copy.deepcopy(head.state_dict()), losses, stepper.scale.state()


ATTENTIVE = {"readout": "attentive", "readout_heads": 2, "readout_depth": 2}
ATTENTIVE |= {"width": None, "bottleneck": 4, "common_neuron": True, "readout_dropout": 0.3}
CASES = {
    "plain": ({}, {"udl": False}),
    "udl": ({}, {}),
    "dense": ({"routing_gradient": "dense"}, {}),
    "attentive readout, bottleneck, common neuron": (ATTENTIVE, {}),
    "sgd in parts, clipped": ({}, {"optimizer": "sgd", "part_size": 3, "clip_norm": 0.5}),
    "mixed, drawn anew, balanced": ({}, {"mixup": True, "balance_weight": 0.1}),
    "half precision with a moving scale": ({}, {"precision": "float16"}),
}


@pytest.mark.parametrize("name", CASES)
def test_replayed_iterations_are_the_same(name):
    settings, options = CASES[name]
    made = []

    def new_recording():
        made.append(ReplayedOperators())
        return made[-1]

    graphs = IterationGraphs(torch.device("cpu"), new_recording)
    wanted = train(settings, None, **options)
    found = train(settings, graphs, **options)
    assert not graphs.is_abandoned
    assert [one.num_replays for one in made] == [7 - NUM_WARM_UPS, 0]
    assert found[1:] == wanted[1:]
    for key, value in wanted[0].items():
        assert torch.equal(found[0][key], value), key


def test_what_cannot_be_captured_is_made_step_by_step(capsys):
    class Refusing(ReplayedOperators):
        def capture(self, make):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = IterationGraphs(torch.device("cpu"), Refusing)
    wanted = train({}, None)
    found = train({}, graphs)
    assert graphs.is_abandoned and found[1] == wanted[1]
    assert "no CUDA graph of the iteration (operation not permitted" in capsys.readouterr().err
