"""Parameter counts: what the paper's table implies, and what is really built."""

from __future__ import annotations

import pytest

from dsts_pipeline.head import AttentiveProbe, ConvBlockHead, DSTSHead, count_parameters
from dsts_pipeline.head.inspection import module_size, size_table

VARIANTS = [
    {},
    {"width": 4},
    {"synapse": False},
    {"specialization": "fixed"},
    {"specialization": "conv3d", "width": 6},
    {"num_layers": 0},
    {"num_neurons": 3, "num_layers": 1},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_counts_are_those_of_the_head(options):
    head = DSTSHead(8, 5, **options)
    assert module_size(8, **options).total == count_parameters(head)


def test_width_164_adds_what_the_paper_adds():
    assert module_size(2048, width=164).total / 1e6 == pytest.approx(12.0, abs=0.5)
    assert module_size(2048).total > 1.7e9


def test_table_has_both_backbones_both_ways():
    rows = size_table()
    assert [(name, label) for name, label, _, _ in rows] == [
        ("TPN SlowOnly-R50", "as written"),
        ("TPN SlowOnly-R50", "width 164"),
        ("Video Swin-B", "as written"),
        ("Video Swin-B", "width 164"),
    ]
    assert rows[1][3] == pytest.approx(75.0, abs=0.5)  # Table 4


@pytest.mark.parametrize("target", [5_000, 449_000, 12_000_000])
def test_the_convolution_block_meets_its_number_of_parameters(target):
    head = ConvBlockHead(128, 48, num_parameters=target)
    assert count_parameters(head) == pytest.approx(target, rel=0.06)


def test_attentive_probe_is_one_block():
    c, hidden = 16, 64
    attention = c + 2 * c + (c * c + c) + (2 * c * c + 2 * c) + (c * c + c)
    mlp = 2 * c + (c * hidden + hidden) + (hidden * c + c)
    assert count_parameters(AttentiveProbe(16, 5)) == attention + mlp
