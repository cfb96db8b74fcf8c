"""TPN with its time left, against the published layers on each frame alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.mmaction_compat import build_model
from dsts_pipeline.extract.taps import keep_time
from tests.extract.small_models import TPN


@pytest.fixture(scope="module")
def neck():
    torch.manual_seed(0)
    neck = build_model(TPN)
    with torch.no_grad():
        for value in neck.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value += 0.3 * torch.rand_like(value)
    neck.eval()
    return neck


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(2, 128, 8, 6, 6, generator=generator),
        torch.rand(2, 256, 8, 3, 3, generator=generator),
    ]


class OneFrame(nn.Module):
    """In place of TPN's pool over 8 frames: frame t alone."""

    def __init__(self, t):
        super().__init__()
        self.t = t

    def forward(self, x):
        return x[:, :, self.t : self.t + 1]


@torch.no_grad()
def test_tpn_with_time_gives_what_the_published_layers_make_of_each_frame(neck, features):
    ours = copy.deepcopy(neck)
    keep_time(ours)
    found = ours(features)[0]
    assert found.shape == (2, 2048, 8, 3, 3)
    published = copy.deepcopy(neck)
    for t in range(8):
        for operation in published.temporal_modulation_ops:
            operation.pool = OneFrame(t)
        expected = published(features)[0]
        assert expected.shape[2] == 1
        torch.testing.assert_close(found[:, :, t : t + 1], expected)
    assert (found[:, :, 1:] - found[:, :, :-1]).abs().max() > 1e-2  # time is there


@torch.no_grad()
def test_without_zeroed_taps_untrained_weights_would_mix_frames(neck, features):
    ours, naive = copy.deepcopy(neck), copy.deepcopy(neck)
    keep_time(ours)
    for operation in naive.temporal_modulation_ops:
        operation.pool = nn.Identity()
    assert (ours(features)[0] - naive(features)[0]).abs().max() > 1e-2


@torch.no_grad()
def test_for_a_still_picture_time_kept_and_pooled_agree_inside(neck, features):
    still = [part[:, :, :1].expand(-1, -1, 8, -1, -1).contiguous() for part in features]
    ours = copy.deepcopy(neck)
    keep_time(ours)
    kept = ours(still)[0][:, :, 1:-1]  # the ends see zero padding in the temporal modulation
    assert (kept - kept[:, :, :1]).abs().max() < 1e-5


def test_keep_time_is_for_tpn_only():
    with pytest.raises(SettingsError, match="the tap neck_time is for TPN, this recognizer has"):
        keep_time(None)
