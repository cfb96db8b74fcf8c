"""GST's blocks as a head on cached maps."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.head import GSTHead, LinearProbe, load_head, save_head
from dsts_pipeline.head.building import build_head
from tests.reference.literal_gst import gst_block

MAPS = torch.randn(3, 16, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()


def part_of(state: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in state.items() if prefix in key}


def test_head_is_blocks_pool_and_classifier():
    torch.manual_seed(0)
    head = GSTHead(16, 5, num_layers=2).double().eval()
    state = head.state_dict()
    hidden = MAPS
    for number in range(2):
        hidden = gst_block(hidden, part_of(state, f"blocks.{number}."), beta=2, stride=1)
    expected = hidden.mean((2, 3, 4)) @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(head(MAPS), expected)
    assert state["blocks.0.conv2.weight"].shape == (3, 2, 1, 3, 3)  # C / 4 = 4 planes, 3 spatial


def test_zero_start_is_the_backbones_classifier():
    own = LinearProbe(16, 5)
    chosen = HeadSettings(kind="gst", width=8, zero_start=True)
    head = build_head(chosen, (16, 5), own, seed=0)
    maps = MAPS.relu().float()
    torch.testing.assert_close(head(maps), own(maps))


def test_width_that_has_no_quarter_is_refused():
    with pytest.raises(ValueError, match="GST cuts 6 channels"):
        GSTHead(16, 5, width=6)


@pytest.mark.parametrize("readout", [{}, {"readout": "attentive", "readout_heads": 2}])
def test_round_trip(readout, tmp_path):
    head = GSTHead(16, 5, num_layers=1, **readout)
    save_head(tmp_path, head)
    torch.testing.assert_close(load_head(tmp_path)[0](MAPS.float()), head.eval()(MAPS.float()))
