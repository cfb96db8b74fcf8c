"""Maps whose order in time is taken away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.head import DSTSHead, LinearProbe
from dsts_pipeline.metrics.scoring import disturb_time

MAPS = torch.randn(6, 4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
ROWS = np.arange(6)


def test_shuffling_keeps_every_frame_of_a_clip_and_draws_by_clip():
    shuffled = disturb_time(MAPS, ROWS, "shuffle", seed=0)
    for clip, other in zip(MAPS, shuffled, strict=True):
        assert not torch.equal(clip, other)
        frames = sorted(frame.flatten().tolist() for frame in clip.unbind(1))
        assert sorted(frame.flatten().tolist() for frame in other.unbind(1)) == frames
    part = disturb_time(MAPS[2:4], ROWS[2:4], "shuffle", seed=0)
    assert torch.equal(part, shuffled[2:4]), "batches do not matter"
    assert not torch.equal(disturb_time(MAPS, ROWS, "shuffle", seed=1), shuffled)


def test_averaging_leaves_no_change_in_time():
    averaged = disturb_time(MAPS, ROWS, "average", seed=0)
    torch.testing.assert_close(averaged[:, :, 0], MAPS.mean(dim=2))
    assert torch.equal(averaged[:, :, 0], averaged[:, :, 5])


@pytest.mark.parametrize("how", ["shuffle", "average"])
def test_a_head_that_pools_first_loses_nothing_one_with_time_does(how):
    torch.manual_seed(0)
    disturbed = disturb_time(MAPS, ROWS, how, seed=0)
    probe = LinearProbe(4, 5)
    torch.testing.assert_close(probe(disturbed), probe(MAPS))
    head = DSTSHead.paper(4, 5, num_neurons=2, num_layers=1, width=None, zero_start=False).eval()
    assert not torch.allclose(head(disturbed), head(MAPS), atol=1e-4)
