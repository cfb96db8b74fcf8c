"""Scaling with antialiasing, against torch's own and Pillow's, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dsts_pipeline.extract.pipelines import cut_square, resize_smoothly, scale_frames

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


FILTERS = {"pillow_bilinear": Image.Resampling.BILINEAR, "pillow_bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize(("height_width", "wanted"), SIZES)
def test_gives_pillows_bytes(height_width, wanted, kind):
    frames = frames_of(*height_width)
    expected = [Image.fromarray(frame).resize(wanted, FILTERS[kind]) for frame in frames]
    assert np.array_equal(resize_smoothly(frames, *wanted, kind), np.stack(expected))


# timm's resnet50.a1_in1k: 224 px in the middle of floor(224 / 0.95), so 11 px are cut off above and
# below, and torchvision leaves the even number of 5 and 6 of them above.
@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize(
    ("height_width", "squeezes", "scaled", "corner"),
    [
        ((240, 320), False, (313, 235), (44, 6)),
        ((321, 240), False, (235, 314), (6, 45)),
        ((240, 320), True, (235, 235), (6, 6)),
    ],
)
def test_a_square_is_cut_where_torchvision_cuts_it(height_width, squeezes, scaled, corner, kind):
    frames = frames_of(*height_width)
    left, top = corner
    box = (left, top, left + 224, top + 224)
    expected = [Image.fromarray(f).resize(scaled, FILTERS[kind]).crop(box) for f in frames]
    whole = scale_frames(frames, kind, 235, squeezes=squeezes)
    found = cut_square(whole, 224, 1, kind)
    assert np.array_equal(found, np.stack(expected))


@pytest.mark.parametrize(
    ("scaling", "lefts"),
    [("opencv", [0, 5, 10]), ("bicubic", [0, 5, 10]), ("pillow_bicubic", [0, 6, 10])],
)
def test_an_odd_margin_is_halved_as_each_library_does(scaling, lefts):
    """mmaction2 and transformers round 5.5 down, torchvision to the even 6; ends stay."""
    frames = np.arange(43, dtype=np.uint8)[None, None, :, None].repeat(32, axis=1)
    found = [int(cut_square(frames, 32, crop, scaling)[0, 0, 0, 0]) for crop in range(3)]
    assert found == lefts


def test_the_shorter_side_is_scaled_and_the_longer_cut_off_to_a_pixel():
    assert scale_frames(frames_of(240, 427), "bilinear", 292).shape == (2, 292, 519, 3)
    assert scale_frames(frames_of(427, 240), "bicubic", 292).shape == (2, 519, 292, 3)
    assert scale_frames(frames_of(240, 427), "opencv", 292).shape == (2, 292, 520, 3)


@pytest.mark.parametrize("scaling", ["opencv", "bilinear"])
def test_a_frame_that_is_squeezed_becomes_a_square(scaling):
    assert scale_frames(frames_of(48, 80), scaling, 32, squeezes=True).shape == (2, 32, 32, 3)
