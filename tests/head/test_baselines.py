"""The baseline heads compute what their sources say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.head import (
    AttentiveProbe,
    ConvBlockHead,
    LinearProbe,
    load_head,
    save_head,
    take_over_classifier,
)

MAPS = torch.randn(3, 8, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_linear_probe():
    probe = LinearProbe(8, 5)
    expected = F.linear(MAPS.flatten(2).mean(2), probe.classifier.weight, probe.classifier.bias)
    torch.testing.assert_close(probe(MAPS), expected)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="8 channels are no multiple of 3 attention heads"):
        AttentiveProbe(8, 5, readout_heads=3)


def test_convolution_block_starts_at_its_classifier():
    probe, block = LinearProbe(8, 5), ConvBlockHead(8, 5, num_parameters=500, zero_start=True)
    take_over_classifier(block, probe.classifier.weight, probe.classifier.bias)
    torch.testing.assert_close(block(MAPS), probe(MAPS))


def test_too_small_a_block_is_refused():
    with pytest.raises(ValueError, match="too few.*at least 45"):
        ConvBlockHead(8, 5, num_parameters=5)


def test_convolution_block_with_an_attentive_readout():
    block = ConvBlockHead(8, 5, num_parameters=500, readout="attentive", readout_heads=2).eval()
    hidden = block.convolution(block.project_in(MAPS))
    hidden = block.norm(hidden).relu().movedim(1, -1) @ block.project_out.weight.T
    tokens = (MAPS.movedim(1, -1) + hidden).flatten(1, 3)
    torch.testing.assert_close(block(MAPS), block.classifier(block.pooler(tokens)))


@pytest.mark.parametrize(
    "head",
    [
        AttentiveProbe(8, 5, readout_depth=2, readout_dropout=0.1),
        ConvBlockHead(8, 5, num_parameters=500),
        ConvBlockHead(8, 5, num_parameters=500, readout="attentive"),
        LinearProbe(8, 5, readout_dropout=0.5),
    ],
)
def test_round_trip(head, tmp_path):
    save_head(tmp_path, head)
    torch.testing.assert_close(load_head(tmp_path)[0](MAPS), head.eval()(MAPS))


def test_dropout_keeps_the_mean_and_only_trains():
    probe = LinearProbe(8, 5, readout_dropout=0.25)
    noise = probe.draw_noise(4000, torch.Generator().manual_seed(0))
    assert noise[0].factors.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert noise[0].factors.mean() == pytest.approx(1.0, abs=0.01)
    vector = MAPS.mean((2, 3, 4))
    few = probe.draw_noise(3)
    torch.testing.assert_close(probe(MAPS, few), probe.classifier(vector * few[0].factors))
    torch.testing.assert_close(probe.eval()(MAPS), probe.classifier(vector))


def test_an_attentive_probe_of_release_0_1_still_loads(tmp_path):
    """Its tensors had no prefix, its arguments other names, and it mixed its heads."""
    probe = AttentiveProbe(8, 5, readout_heads=2, output_projection=True, layer_norm_eps=1e-5)
    as_then = torch.nn.Module()
    for name, part in [*probe.pooler.named_children(), ("classifier", probe.classifier)]:
        if name != "blocks":
            as_then.add_module(name, part)
    as_then.query = probe.pooler.query
    as_then.config = {"in_channels": 8, "num_classes": 5, "num_heads": 2, "mlp_ratio": 4.0}
    as_then.__class__.__name__ = "AttentiveProbe"
    try:
        save_head(tmp_path, as_then)
    finally:
        as_then.__class__.__name__ = "Module"
    torch.testing.assert_close(load_head(tmp_path)[0](MAPS), probe.eval()(MAPS))
