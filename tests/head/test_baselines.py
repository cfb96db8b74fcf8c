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


def test_attentive_probe_equals_torchs_attention():
    probe = AttentiveProbe(8, 5, num_heads=2)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        weights = [probe.to_query.weight, probe.to_key_value.weight]
        reference.in_proj_weight.copy_(torch.cat(weights))
        reference.in_proj_bias.copy_(torch.cat([probe.to_query.bias, probe.to_key_value.bias]))
        reference.out_proj.load_state_dict(probe.mix.state_dict())
    tokens = probe.input_norm(MAPS.flatten(2).transpose(1, 2))
    query = probe.query.expand(3, 1, -1)
    attended = query + reference(query, tokens, tokens)[0]
    expected = (attended + probe.mlp(probe.mlp_norm(attended)))[:, 0]
    torch.testing.assert_close(probe.pool(MAPS), expected)


def test_attentive_probe_does_not_care_for_the_order_of_positions():
    probe = AttentiveProbe(8, 5)
    torch.testing.assert_close(probe(MAPS.flip(2, 3, 4)), probe(MAPS))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="no multiple of num_heads=3"):
        AttentiveProbe(8, 5, num_heads=3)


def test_convolution_block_starts_at_its_classifier():
    probe, block = LinearProbe(8, 5), ConvBlockHead(8, 5, num_parameters=500, zero_start=True)
    take_over_classifier(block, probe.classifier.weight, probe.classifier.bias)
    torch.testing.assert_close(block(MAPS), probe(MAPS))


def test_too_small_a_block_is_refused():
    with pytest.raises(ValueError, match="too few.*at least 45"):
        ConvBlockHead(8, 5, num_parameters=5)


@pytest.mark.parametrize("head", [AttentiveProbe(8, 5), ConvBlockHead(8, 5, num_parameters=500)])
def test_round_trip(head, tmp_path):
    save_head(tmp_path, head)
    torch.testing.assert_close(load_head(tmp_path)[0](MAPS), head.eval()(MAPS))
