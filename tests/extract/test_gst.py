"""GST's ResNet-50: its block against a literal one, its sizes, and its authors' names of keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dsts_pipeline.clips.sampling import SAMPLERS
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.gst import GSTBlock, GSTResNet50
from dsts_pipeline.extract.weights import find_classifier
from tests.reference.literal_gst import gst_block


@pytest.mark.parametrize(
    ("beta", "stride", "out_channels"), [(2, 1, 16), (1, 1, 16), (2, 2, 24), (1, 2, 24)]
)
def test_block_is_the_literal_one(beta, stride, out_channels):
    torch.manual_seed(0)
    block = GSTBlock(16, out_channels, 8, beta=beta, stride=stride).double().eval()
    for part in block.modules():
        if isinstance(part, nn.BatchNorm3d):
            for value in (part.weight, part.bias, part.running_mean):
                nn.init.normal_(value)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    x = torch.randn(2, 16, 3, 4, 5, dtype=torch.float64)
    expected = gst_block(x, dict(block.state_dict()), beta=beta, stride=stride)
    torch.testing.assert_close(block(x), expected)


def test_shares_are_fixed():
    """A quarter of the planes is temporal, and both convolutions have as many weights."""
    for beta in (1, 2):
        block = GSTBlock(64, 64, 16, beta=beta)
        assert (block.conv2.out_channels, block.Tconv.out_channels) == (12, 4)
        assert block.conv2.in_channels == block.Tconv.in_channels == 16 // beta
        assert block.conv2.weight.numel() == block.Tconv.weight.numel()
    with pytest.raises(ValueError, match="GST cuts 6 channels into 4 shares and 2 groups"):
        GSTBlock(64, 64, 6)
    with pytest.raises(ValueError, match="beta=3; expected 2"):
        GSTBlock(64, 64, 16, beta=3)


@pytest.mark.parametrize(("beta", "expected"), [(2, 21.0e6), (1, 29.5e6)])
def test_network_has_the_published_size(beta, expected):
    """With its classifier of 174 classes; ResNet-50 itself has 23.9 million then."""
    with torch.device("meta"):
        model = GSTResNet50(beta=beta)
    found = sum(parameter.numel() for parameter in model.parameters()) + 174 * 2049
    assert found == pytest.approx(expected, rel=0.003)
    maps = model(torch.empty(1, 3, 8, 224, 224, device="meta"))
    assert maps.shape == (1, 2048, 8, 7, 7)


def published_keys(beta: int) -> dict[str, torch.Tensor]:
    """A checkpoint as the authors' main.py saves it: a TemporalModel in DataParallel."""
    torch.manual_seed(1)
    model = GSTResNet50(beta=beta)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.uniform_(part.running_mean)
    state = {f"module.base_model.{key}": value for key, value in model.state_dict().items()}
    state["module.new_fc.weight"] = torch.randn(174, 2048)
    state["module.new_fc.bias"] = torch.randn(174)
    return state


# Names and shapes as the authors' GST.py and models.py make them (alpha 4, beta 2).
PUBLISHED = {
    "module.base_model.conv1.weight": (64, 3, 1, 7, 7),
    "module.base_model.bn1.running_mean": (64,),
    "module.base_model.layer1.0.conv1.weight": (64, 64, 1, 1, 1),
    "module.base_model.layer1.0.conv2.weight": (48, 32, 1, 3, 3),
    "module.base_model.layer1.0.Tconv.weight": (16, 32, 3, 3, 3),
    "module.base_model.layer1.0.bn2.weight": (64,),
    "module.base_model.layer1.0.downsample.0.weight": (256, 64, 1, 1, 1),
    "module.base_model.layer1.0.downsample.1.bias": (256,),
    "module.base_model.layer3.5.conv2.weight": (192, 128, 1, 3, 3),
    "module.base_model.layer4.2.Tconv.weight": (128, 256, 3, 3, 3),
    "module.base_model.layer4.2.conv3.weight": (2048, 512, 1, 1, 1),
    "module.base_model.layer4.2.bn3.num_batches_tracked": (),
    "module.new_fc.weight": (174, 2048),
}


@pytest.mark.slow
def test_published_keys_load_and_give_their_own_answers(tmp_path):
    state = published_keys(beta=2)
    assert {name: tuple(state[name].shape) for name in PUBLISHED} == PUBLISHED
    file = tmp_path / "GST_somethingv2_resnet50_segment8_checkpoint.pth.tar"
    torch.save({"epoch": 70, "arch": "resnet50", "state_dict": state, "best_prec1": 61.6}, file)
    backbone = build_backbone("gst_r50", weights=file, num_frames=2, size_px=32)
    report = backbone.load_report
    assert report is not None and report.key_map == "gst"
    assert report.left_out == ("module.new_fc.bias", "module.new_fc.weight")
    loaded = backbone.recognizer.backbone.state_dict()
    for name, value in loaded.items():
        torch.testing.assert_close(value, state[f"module.base_model.{name}"], rtol=0, atol=0)
    # The authors' answer: the classifier on each frame's averaged map, then the frames' mean.
    frames = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    classifier = find_classifier(file, 2048, 174)
    assert classifier is not None
    maps = backbone(frames)
    pixels = frames.permute(0, 4, 1, 2, 3) / 255.0
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
    own = backbone.recognizer.backbone((pixels - mean) / std)
    torch.testing.assert_close(maps, own, rtol=1e-4, atol=1e-4)
    of_frames = torch.nn.functional.linear(maps.mean((3, 4)).transpose(1, 2), *classifier)
    of_map = torch.nn.functional.linear(maps.mean((2, 3, 4)), *classifier)
    torch.testing.assert_close(of_frames.mean(dim=1), of_map, rtol=1e-4, atol=1e-3)
    with pytest.raises(Exception, match="of another shape"):
        build_backbone("gst_large_r50", weights=file, num_frames=2, size_px=32)


def test_frames_are_the_authors():
    """`_get_test_indices` of their dataset.py, counted from 0."""
    for num_frames in (8, 9, 30, 47, 100, 333):
        for num_segments in (8, 16):
            tick = num_frames / float(num_segments)
            expected = [int(tick / 2.0 + tick * x) for x in range(num_segments)]
            found = SAMPLERS["segment_centres"](num_frames, clip_len=num_segments)
            np.testing.assert_array_equal(found[0], expected)
