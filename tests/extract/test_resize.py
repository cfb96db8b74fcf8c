"""Scaling of frames, against OpenCV itself."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.extract import pipelines as resize
from dsts_pipeline.extract.pipelines import resize_by_numpy, resize_frames, scaled_size

cv2 = pytest.importorskip(
    "cv2", reason="OpenCV's system libraries are missing", exc_type=ImportError
)
SIZES = [
    ((256, 340), (298, 224)),
    ((64, 64), (256, 256)),
    ((37, 53), (321, 224)),
    ((480, 640), (341, 256)),
    ((16, 16), (224, 224)),
    ((90, 122), (87, 64)),
]


@pytest.mark.parametrize(("height_width", "wanted"), SIZES)
def test_both_ways_give_opencvs_bytes(height_width, wanted):
    frames = np.random.default_rng(0).integers(0, 256, (3, *height_width, 3), dtype=np.uint8)
    expected = np.stack([cv2.resize(frame, wanted) for frame in frames])
    assert np.array_equal(resize_frames(frames, *wanted), expected)
    assert np.array_equal(resize_by_numpy(frames, *wanted), expected)
    assert expected.std() > 10


def test_without_opencv_numpy_does_it(monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    expected = resize_frames(frames, 35, 25)
    monkeypatch.setattr(resize, "find_opencv", lambda: None)
    assert np.array_equal(resize_frames(frames, 35, 25), expected)


def test_frames_of_the_wanted_size_are_left_alone():
    frames = np.zeros((1, 4, 6, 3), np.uint8)
    assert resize_frames(frames, 6, 4) is frames


@pytest.mark.parametrize("width", [320, 340, 341, 426, 455, 1920])
def test_sizes_are_rounded_as_mmcv_rounds(width):
    from mmcv import rescale_size

    for height in (239, 240, 256, 1080):
        for shorter in (64, 224, 256):
            expected = rescale_size((width, height), (np.inf, shorter))
            assert scaled_size(width, height, shorter) == expected
