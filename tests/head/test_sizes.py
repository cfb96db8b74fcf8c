"""Parameter counts: what the paper's table implies, and what is really built."""

from __future__ import annotations

import itertools

import pytest
import torch

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.head import AttentiveProbe, ConvBlockHead, DSTSHead, count_parameters


def module_of_paper(in_channels, width, bottleneck=None):
    """Parameters that the paper's module adds to a backbone."""
    with torch.device("meta"):
        head = DSTSHead.paper(in_channels, 5, width=width, bottleneck=bottleneck)
        return count_parameters(head)


def test_width_164_adds_what_the_paper_adds():
    """TPN with SlowOnly-R50 has 63.2 million; the paper's 75 (Table 4) need a projection."""
    assert module_of_paper(2048, 164) / 1e6 == pytest.approx(12.0, abs=0.5)
    assert (63_210_734 + module_of_paper(2048, 164)) / 1e6 == pytest.approx(75.0, abs=0.5)
    assert module_of_paper(2048, None) > 1.7e9


def test_bottleneck_15_adds_what_the_paper_adds():
    """The other reading: operators of each neuron's own, N_out = 15, no shared projection."""
    added = module_of_paper(2048, None, bottleneck=15)
    assert added / 1e6 == pytest.approx(12.0, abs=0.5)
    own = 2048 * 15 * (9 + 3 + 1)  # spatial, temporal, fusion
    of_neuron = own + 2048 + 2048 + 4 * 15  # scoring, gates, two norms
    assert added == 30 * of_neuron


def test_maps_of_no_more_channels_than_the_width_are_not_projected_to_more():
    heads = {c: DSTSHead(c, 5, num_neurons=1, num_layers=1, width=12) for c in (8, 12, 16)}
    assert [heads[c].layers[0].channels for c in (8, 12, 16)] == [8, 12, 12]
    assert [heads[c].project_in is not None for c in (8, 12, 16)] == [False, True, True]
    assert heads[8].output_gain.shape == (8,)
    assert heads[8](torch.randn(4, 8, 2, 3, 3)).shape == (4, 5)


@pytest.mark.parametrize("target", [5_000, 449_000, 12_000_000])
def test_the_convolution_block_meets_its_number_of_parameters(target):
    head = ConvBlockHead(128, 48, num_parameters=target)
    assert count_parameters(head) == pytest.approx(target, rel=0.06)


@pytest.mark.parametrize("depth", [1, 4])
def test_attentive_probe(depth):
    c, hidden = 16, 64
    mlp = 2 * c + (c * hidden + hidden) + (hidden * c + c)
    of_query = c + 2 * c + (c * c + c) + (2 * c * c + 2 * c) + mlp
    of_block = 2 * c + (3 * c * c + 3 * c) + (c * c + c) + mlp
    probe = AttentiveProbe(16, 5, readout_depth=depth)
    assert count_parameters(probe) == of_query + (depth - 1) * of_block
    assert count_parameters(probe, with_pooler=False) == 0


def test_the_settings_know_whether_a_head_has_anything_upstream():
    sizes = itertools.product((1, 3), (0, 2), (True, False), ("gated", "fixed", "conv3d"))
    for num_neurons, num_layers, synapse, specialization in sizes:
        options = HeadSettings(
            num_neurons=num_neurons,
            num_layers=num_layers,
            synapse=synapse,
            specialization=specialization,
            width=4,
        )
        head = DSTSHead.from_settings(4, 2, options)
        assert options.has_upstream == bool(head.upstream_parameters()), options
    assert not HeadSettings(kind="gst").has_upstream
