"""Scaling with antialiasing, against torch's own, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.extract.pipelines import resize_smoothly, scale_frames

SIZES = [
    ((256, 340), (298, 224)),
    ((480, 640), (341, 256)),
    ((1080, 1920), (519, 292)),
    ((240, 320), (224, 224)),
    ((37, 53), (321, 224)),
    ((64, 64), (65, 65)),
    ((64, 96), (96, 64)),
]


def frames_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height_width", "wanted"), SIZES)
def test_gives_torchs_bytes(height_width, wanted, kind):
    frames = frames_of(*height_width)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    expected = torch.nn.functional.interpolate(pixels, size=wanted[::-1], mode=kind, antialias=True)
    found = resize_smoothly(frames, *wanted, kind)
    difference = np.abs(found.astype(int) - expected.permute(0, 2, 3, 1).numpy())
    # Where a processor has no AVX2, torch takes floating-point weights, and may round otherwise.
    has_kernel = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert difference.max() <= (0 if has_kernel else 1)


def test_the_shorter_side_is_scaled_and_the_longer_cut_off_to_a_pixel():
    assert scale_frames(frames_of(240, 427), "bilinear", 292).shape == (2, 292, 519, 3)
    assert scale_frames(frames_of(427, 240), "bicubic", 292).shape == (2, 519, 292, 3)
    assert scale_frames(frames_of(240, 427), "opencv", 292).shape == (2, 292, 520, 3)


@pytest.mark.parametrize("scaling", ["opencv", "bilinear"])
def test_a_frame_that_is_squeezed_becomes_a_square(scaling):
    assert scale_frames(frames_of(48, 80), scaling, 32, squeezes=True).shape == (2, 32, 32, 3)
