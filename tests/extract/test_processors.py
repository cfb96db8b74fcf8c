"""Frames as each model's own processor makes them, from the same decoded pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.backbones import normalize_frames
from dsts_pipeline.extract.decode_pool import Stopwatch, decode_views
from dsts_pipeline.extract.views import FrameRequest, FrameView, InputRule
from tests.clips.videos import write_video
from tests.extract.test_transformers_models import new_model

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")
pytest.importorskip(
    "torchvision", reason="the processors need it", exc_type=(ImportError, RuntimeError)
)
NUMBERS = (0, 3, 5)
SMALL = {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}
SQUEEZED = {"size": {"height": 48, "width": 48}}
# Kind of model, its processor, the processor's sizes.
CASES = [
    ("vjepa2", "VJEPA2VideoProcessor", {"crop_size": 48}),
    ("videomae", "VideoMAEVideoProcessor", SMALL),
    ("vivit", "VivitVideoProcessor", SMALL),
    ("timesformer", "TimesformerVideoProcessor", SMALL),
    ("dinov2", "BitImageProcessor", SMALL),
    ("siglip", "SiglipImageProcessor", SQUEEZED),
    ("dinov3_vit", "DINOv3ViTImageProcessor", SQUEEZED),
]


@pytest.mark.parametrize(("kind", "processor", "sizes"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("size", [(130, 98), (98, 130), (50, 60), (50, 66)])
def test_pixels_are_those_of_the_models_own_processor(tmp_path, kind, processor, sizes, size):
    """At 50 x 60 (V-JEPA 2: 50 x 66) px the margin is odd, and its half would round up."""
    new_model(kind).save_pretrained(tmp_path)
    made = getattr(transformers, processor)(**sizes)
    made.save_pretrained(tmp_path)
    backbone = build_backbone(kind, weights=tmp_path)
    video = write_video(tmp_path / "clip.mp4", num_frames=8, size=size, seed=1)
    whole = decode_frames(video, np.array(NUMBERS))
    pictures = list(torch.from_numpy(whole).permute(0, 3, 1, 2))
    if processor.endswith("VideoProcessor"):
        told = made(videos=[torch.stack(pictures)], return_tensors="pt")
    else:
        told = made(images=pictures, return_tensors="pt")
    expected = next(iter(told.values())).reshape(len(NUMBERS), 3, 48, 48)
    rule = InputRule.of(backbone)
    request = FrameRequest(
        str(video),
        "auto",
        None,
        views=(FrameView(NUMBERS),),
        size_px=rule.size_px,
        resize_px=rule.resize_px,
        **rule.scaling,
    )
    frames = torch.from_numpy(decode_views(request, Stopwatch()))
    found = normalize_frames(frames, backbone.pipeline.mean, backbone.pipeline.std, torch.float32)
    found = found[0].transpose(0, 1)
    # DINOv3's alone scales numbers: bytes, rounded along rows and columns, are within a grey level.
    tolerance = 1.01 / 255 / 0.224 if kind == "dinov3_vit" else 1e-3
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=tolerance)
