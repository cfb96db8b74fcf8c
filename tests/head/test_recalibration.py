"""Recomputed statistics are those of the data with the decisions of test time."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.head import ConvBlockHead, GSTHead, LinearProbe
from dsts_pipeline.head.recalibration import num_recalibration_passes, recalibrate
from tests.reference.variants import build, reference_of, sample_input


@pytest.mark.parametrize(
    "name",
    ["paper", "selected", "standardized", "no-synapse", "whole-batch-norm", "conv3d"]
    + ["bottleneck-selected", "common", "attentive-deep"],
)
def test_statistics_are_those_of_one_noise_free_pass(name):
    head, config = build(name)
    maps, _ = sample_input(samples=24)
    recalibrate(head, lambda: maps.split(7))
    assert head.training

    layer = next(head.dsts_layers())
    if name == "standardized":
        raw = layer.impulses.measure(head.layer_input(maps, 0), layer.scoring_kernel)
        torch.testing.assert_close(layer.impulses.running_mean, raw.mean(0))
        torch.testing.assert_close(layer.impulses.running_var, raw.var(0))
    operator = "volume_kernel" if name == "conv3d" else "spatial_kernel"
    norm = layer.volume_norm if name == "conv3d" else layer.spatial_norm
    reference = reference_of(head, config)
    reference.training = False
    everyone = torch.ones(len(maps), dtype=torch.bool)
    choice = None
    if config.get("synapse", True) and name != "whole-batch-norm":
        choice = head.eval().routing(maps)[:, 0]
    for i in range(layer.num_neurons):
        fed = everyone if choice is None else choice == i
        if not fed.any():
            continue
        if name == "conv3d":
            z = torch.nn.functional.conv3d(maps[fed], getattr(layer, operator)[i], padding=1)
        else:
            b = reference.gates(0, i, None)[None, :, None, None, None]
            kernel = getattr(layer, operator)[i][:, :, None]
            z = torch.nn.functional.conv3d((1 - b) * maps[fed], kernel, padding=(0, 1, 1))
        torch.testing.assert_close(norm.running_mean[i], z.mean((0, 2, 3, 4)))
        torch.testing.assert_close(norm.running_var[i], z.var((0, 2, 3, 4), unbiased=True))


@pytest.mark.parametrize("name", ["common-selected", "everything"])
def test_a_common_neuron_has_the_statistics_of_all_samples(name):
    head, config = build(name)
    maps, _ = sample_input(samples=24)
    recalibrate(head, lambda: maps.split(7))
    seen = head.eval().layer_input(maps, 1).movedim(-1, 1)  # of the second layer
    common = list(head.dsts_layers())[1].common
    gates = common.gates(None)[0][None, :, None, None, None]
    kernel = common.temporal_kernel[0][:, :, :, None, None]
    z = torch.nn.functional.conv3d(gates * seen, kernel, padding=(1, 0, 0))
    torch.testing.assert_close(common.temporal_norm.running_mean[0], z.mean((0, 2, 3, 4)))
    torch.testing.assert_close(
        common.temporal_norm.running_var[0], z.var((0, 2, 3, 4), unbiased=True)
    )


def test_a_neuron_without_samples_keeps_its_statistics():
    head, _ = build("selected")
    layer = next(head.dsts_layers())
    with torch.no_grad():
        layer.scoring_kernel[1] = 0.0
        layer.scoring_kernel[0] = 1.0
        layer.scoring_kernel[2] = -1.0
    before = layer.spatial_norm.running_mean[1].clone()
    maps, _ = sample_input(samples=12)
    recalibrate(head, lambda: maps.split(5))
    assert torch.equal(layer.spatial_norm.running_mean[1], before)


@pytest.mark.parametrize("kind", [ConvBlockHead, GSTHead])
def test_other_heads_norms_have_the_statistics_of_all_samples(kind):
    more = {"num_parameters": 600} if kind is ConvBlockHead else {"num_layers": 2}
    head = kind(16, 3, **more)
    maps = torch.randn(24, 16, 2, 3, 3) * 2 + 1
    maps += 3.0 * torch.arange(24).div(8, rounding_mode="floor")[:, None, None, None, None]
    norms = {one: [] for one in head.modules() if isinstance(one, torch.nn.BatchNorm3d)}
    assert num_recalibration_passes(head) == len(norms) == (1 if kind is ConvBlockHead else 6)
    recalibrate(head, lambda: maps.split((8, 8, 7, 1)))  # batches class by class
    for norm, seen in norms.items():
        assert norm.training and norm.momentum == 0.1
        norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
    assert head.training
    head.eval()(maps)
    for norm, (seen,) in norms.items():
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3, 4)))
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3, 4)))


@pytest.mark.parametrize("kind", [ConvBlockHead, GSTHead])
def test_a_last_batch_of_one_vector_is_normalised_by_running_statistics(kind):
    head = kind(16, 3, **({"num_parameters": 600} if kind is ConvBlockHead else {}))
    head(torch.randn(8, 16, 1, 1, 1))
    vector = torch.randn(1, 16, 1, 1, 1)
    before = {name: value.clone() for name, value in head.named_buffers()}
    head(vector).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    torch.testing.assert_close(head(vector), head.eval()(vector))


@pytest.mark.parametrize("kind", [ConvBlockHead, GSTHead])
def test_other_heads_without_clips_keep_their_statistics(kind):
    head = kind(16, 3, **({"num_parameters": 600} if kind is ConvBlockHead else {}))
    head(torch.randn(8, 16, 2, 3, 3))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    recalibrate(head, lambda: iter(()))
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)


def test_a_head_without_norms_is_left_alone_and_asks_for_no_pass():
    head = LinearProbe(8, 3)
    assert num_recalibration_passes(head) == 0
    recalibrate(head, lambda: pytest.fail("a pass was made"))
