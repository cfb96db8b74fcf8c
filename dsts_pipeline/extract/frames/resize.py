"""Bilinear scaling of frames, bit for bit as OpenCV does it.

Enters: uint8 frames. Leaves: uint8 frames of another size. mmaction2 scales frames with OpenCV's
`INTER_LINEAR`; published weights expect that. Where OpenCV cannot be loaded, the same arithmetic in
numpy takes its place, so a store's bytes do not depend on which one ran.
Nothing here needs torch: decode processes use it.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import numpy as np

_WEIGHT_BITS = 11  # OpenCV's INTER_RESIZE_COEF_BITS


def scaled_size(width: int, height: int, shorter_px: int) -> tuple[int, int]:
    """Width and height once the shorter side is `shorter_px`, rounded as mmcv rounds.

    >>> scaled_size(340, 256, 224)
    (298, 224)
    """
    scale = shorter_px / min(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def resize_frames(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] at `width` x `height`: uint8 [T, height, width, 3]."""
    if frames.shape[1:3] == (height, width):
        return frames
    opencv = _import_opencv()
    if opencv is None:
        return resize_by_numpy(frames, width, height)
    resized = [opencv.resize(frame, (width, height), interpolation=1) for frame in frames]
    return np.stack(resized)


def resize_by_numpy(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """What `resize_frames` does, in numpy: weights are whole numbers of 11 bits.

    Rows are weighted across first and lose 4 bits; the two rows lose 16 bits each before they are
    added, and the last 2 bits are rounded.
    """
    left, right, from_left, from_right = _weigh(frames.shape[2], width)
    upper, lower, from_upper, from_lower = _weigh(frames.shape[1], height)
    resized = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    for row, frame in zip(resized, frames.astype(np.int32), strict=True):
        across = frame[:, left] * from_left[:, None] + frame[:, right] * from_right[:, None]
        across >>= 4
        above = (from_upper[:, None, None] * across[upper]) >> 16
        below = (from_lower[:, None, None] * across[lower]) >> 16
        row[:] = ((above + below + 2) >> 2).clip(0, 255)
    return resized


def _weigh(length: int, wanted: int) -> tuple[np.ndarray, ...]:
    """For each of `wanted` pixels: its two neighbours among `length`, and their weights."""
    place = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    one = 1 << _WEIGHT_BITS
    weights = [np.rint(part * one).astype(np.int32) for part in (1 - share, share)]
    last = length - 1
    return first.clip(0, last), (first + 1).clip(0, last), weights[0], weights[1]


@functools.cache
def _import_opencv() -> Any:
    """OpenCV, or None where its wheels' system libraries are missing."""
    environment = dict(os.environ)
    try:
        opencv = importlib.import_module("cv2")
        if not hasattr(opencv, "__file__"):  # the stand-in that mmaction2 gets
            return None
        opencv.setNumThreads(1)
        return opencv
    except ImportError:
        return None
    finally:  # its loader changes LD_LIBRARY_PATH, which child processes would inherit
        os.environ.clear()
        os.environ.update(environment)
