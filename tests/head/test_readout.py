"""The attentive pooler against torch's own attention and against transformers' V-JEPA 2 pooler."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.head import (
    AttentivePooler,
    AttentiveProbe,
    DSTSHead,
    LinearProbe,
    attention_map,
)

TOKENS = torch.randn(3, 18, 16, generator=torch.Generator().manual_seed(0))


def spread(pooler, seed=1):
    """Every value away from its start, so that no bias or norm is without effect."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return pooler


def test_the_query_alone_equals_torchs_attention():
    pooler = spread(AttentivePooler(16, num_heads=2, output_projection=True)).double()
    reference = torch.nn.MultiheadAttention(16, 2, batch_first=True).double()
    with torch.no_grad():
        weights = [pooler.to_query.weight, pooler.to_key_value.weight]
        reference.in_proj_weight.copy_(torch.cat(weights))
        reference.in_proj_bias.copy_(torch.cat([pooler.to_query.bias, pooler.to_key_value.bias]))
        reference.out_proj.load_state_dict(pooler.mix.state_dict())
    tokens = TOKENS.double()
    seen = pooler.input_norm(tokens)
    query = pooler.query.expand(3, 1, -1)
    attended = query + reference(query, seen, seen)[0]
    weights = reference(query, seen, seen)[1][:, 0]  # the mean of the heads
    torch.testing.assert_close(pooler.attention(tokens), weights, rtol=1e-12, atol=1e-12)
    expected = (attended + pooler.mlp(pooler.mlp_norm(attended)))[:, 0]
    torch.testing.assert_close(pooler(tokens), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 4])
def test_the_pooler_equals_the_one_of_transformers(depth):
    pytest.importorskip("transformers")
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    config = VJEPA2Config(
        hidden_size=16,
        num_attention_heads=4,
        num_pooler_layers=depth - 1,
        attn_implementation="sdpa",
    )
    reference = spread(VJEPA2AttentivePooler(config)).eval()
    pooler = AttentivePooler(16, depth=depth, num_heads=4)
    cross = reference.cross_attention_layer
    pairs = [
        (pooler.input_norm, cross.layer_norm1),
        (pooler.to_query, cross.cross_attn.q_proj),
        (pooler.mlp_norm, cross.layer_norm2),
        *mlps(pooler, cross),
    ]
    with torch.no_grad():
        pooler.query.copy_(reference.query_tokens[0, 0])
        join(pooler.to_key_value, [cross.cross_attn.k_proj, cross.cross_attn.v_proj])
        for block, layer in zip(pooler.blocks, reference.self_attention_layers, strict=True):
            attention = layer.self_attn
            join(block.to_query_key_value, [attention.q_proj, attention.k_proj, attention.v_proj])
            pairs += [(block.norm, layer.layer_norm1), (block.mix, attention.out_proj)]
            pairs += [(block.mlp_norm, layer.layer_norm2), *mlps(block, layer)]
        for own, other in pairs:
            own.load_state_dict(other.state_dict())
    expected = reference(TOKENS)
    for first_order in (True, False):
        found = pooler(TOKENS, first_order=first_order)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_attention_lies_where_the_map_has_what_is_attended_to():
    torch.manual_seed(0)
    maps = torch.randn(2, 16, 3, 4, 5)
    readout = {"readout": "attentive", "readout_heads": 2, "readout_depth": 2}
    heads = [
        AttentiveProbe(16, 3, readout_heads=2),
        DSTSHead(16, 3, num_neurons=2, num_layers=1, width=4, **readout),
        DSTSHead(16, 3, num_neurons=2, num_layers=1, width=None, **readout),
    ]
    for head in heads:
        spread(head).eval()
        found = attention_map(head, maps)
        assert found.shape == (2, 3, 4, 5)
        torch.testing.assert_close(found.sum(dim=(1, 2, 3)), torch.ones(2))
    probe = heads[0]  # whose attention to a position is of that position alone
    flipped = attention_map(probe, maps.flip(3))
    torch.testing.assert_close(flipped, attention_map(probe, maps).flip(2))
    assert not probe.pooler._forward_pre_hooks


def test_a_head_that_averages_has_no_attention():
    assert attention_map(LinearProbe(16, 3), torch.zeros(1, 16, 2, 2, 2)) is None
    assert attention_map(DSTSHead(16, 3, width=4), torch.zeros(1, 16, 2, 2, 2)) is None


def mlps(own, other):
    return [(own.mlp[0], other.mlp.fc1), (own.mlp[2], other.mlp.fc2)]


def join(own, parts):
    own.weight.copy_(torch.cat([part.weight for part in parts]))
    own.bias.copy_(torch.cat([part.bias for part in parts]))


def test_the_order_of_positions_does_not_matter():
    pooler = AttentivePooler(16, depth=3)
    torch.testing.assert_close(pooler(TOKENS.flip(1)), pooler(TOKENS), rtol=1e-5, atol=1e-5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="16 channels are no multiple of 3 attention heads"):
        AttentivePooler(16, num_heads=3)
