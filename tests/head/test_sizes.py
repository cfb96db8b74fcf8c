"""Parameter counts: what the paper's table implies, and what is really built."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.head import AttentiveProbe, ConvBlockHead, DSTSHead, count_parameters


def module_of_paper(in_channels, width):
    """Parameters that the paper's module adds to a backbone."""
    with torch.device("meta"):
        return count_parameters(DSTSHead.paper(in_channels, 5, width=width))


def test_width_164_adds_what_the_paper_adds():
    """TPN with SlowOnly-R50 has 63.2 million; the paper's 75 (Table 4) need a projection."""
    assert module_of_paper(2048, 164) / 1e6 == pytest.approx(12.0, abs=0.5)
    assert (63_210_734 + module_of_paper(2048, 164)) / 1e6 == pytest.approx(75.0, abs=0.5)
    assert module_of_paper(2048, None) > 1.7e9


@pytest.mark.parametrize("target", [5_000, 449_000, 12_000_000])
def test_the_convolution_block_meets_its_number_of_parameters(target):
    head = ConvBlockHead(128, 48, num_parameters=target)
    assert count_parameters(head) == pytest.approx(target, rel=0.06)


def test_attentive_probe_is_one_block():
    c, hidden = 16, 64
    attention = c + 2 * c + (c * c + c) + (2 * c * c + 2 * c) + (c * c + c)
    mlp = 2 * c + (c * hidden + hidden) + (hidden * c + c)
    assert count_parameters(AttentiveProbe(16, 5)) == attention + mlp
