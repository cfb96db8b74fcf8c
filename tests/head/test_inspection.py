"""Figures of routing and gates."""

from __future__ import annotations

import math

import pytest
import torch

from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.inspection import summarize_head, summarize_layer


def layer_of(**options):
    return next(DSTSHead.paper(4, 3, num_neurons=3, num_layers=1, **options).dsts_layers())


def test_usage_entropy_and_dead_neurons():
    figures = summarize_layer(layer_of(), torch.tensor([0, 0, 2, 2]))
    assert figures["usage"] == [0.5, 0.0, 0.5]
    assert figures["entropy"] == pytest.approx(math.log(2))
    assert figures["dead"] == 1


def test_gates():
    layer = layer_of()
    with torch.no_grad():
        layer.gate_logits.copy_(torch.tensor([[-3.0, -1, 1, 3], [1, 1, 1, 1], [-1, -1, -1, 2.39]]))
    figures = summarize_layer(layer, torch.tensor([0, 1]))
    assert figures["temporal_share"] == [0.5, 1.0, 0.25]
    assert figures["saturated_share"] == pytest.approx(2 / 12)


def test_variants_without_such_a_thing():
    fixed = summarize_layer(layer_of(specialization="fixed"), torch.tensor([0]))
    assert fixed["temporal_share"] == [0.5] * 3
    assert fixed["saturated_share"] is None
    conv = summarize_layer(layer_of(specialization="conv3d"), torch.tensor([0]))
    assert conv["temporal_share"] is None
    plain = summarize_head(DSTSHead.paper(4, 3, num_layers=2, synapse=False), None)
    assert [layer["usage"] for layer in plain] == [None, None]
