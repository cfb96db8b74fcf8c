"""Named recognizers: mmaction2 model configurations with the input that each expects.

Enters: a name. Leaves: a `Preset`, whose `recognizer` is a plain mmaction2 config.

stick_r18, for the embedded data set at 16 frames of 64 x 64 px (output "C T H W"):
  stem     3x5x5 convolution, stride (1, 2, 2), max-pool (1, 2, 2)    16 x 16 x 16 x 16
  stage 1  two blocks of two 3x3x3 convolutions                       16 x 16 x 16 x 16
  stage 2  likewise, space halved                                     32 x 16 x  8 x  8
  stage 3  likewise, space and time halved                            64 x  8 x  4 x  4
  stage 4  one block 3x3x3, one 1x3x3                                128 x  8 x  4 x  4
Choice: time is halved only after stage 2, when nine 3x3x3 convolutions have seen
neighbouring frames: angular speed is visible between frames, not in one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dsts_pipeline.base.errors import SettingsError

# Pixel statistics on the 0..255 scale: (x / 255 - 0.5) / 0.25 for every channel.
PIXEL_MEAN = (127.5, 127.5, 127.5)
PIXEL_STD = (63.75, 63.75, 63.75)


@dataclass(frozen=True)
class Preset:
    """A recognizer's configuration and its native input."""

    name: str
    recognizer: dict[str, Any]
    num_frames: int
    size_px: int
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD


def _resnet3d_recognizer(**backbone: Any) -> dict[str, Any]:
    base_channels = backbone["base_channels"]
    return {
        "type": "Recognizer3D",
        "backbone": {
            "type": "ResNet3dSlowOnly",
            "depth": 18,
            "pretrained": None,
            "lateral": False,
            "conv1_kernel": (3, 5, 5),
            "conv1_stride_s": 2,
            "pool1_stride_s": 2,
            "norm_eval": False,
            "zero_init_residual": False,
            **backbone,
        },
        "cls_head": {
            "type": "I3DHead",
            "num_classes": 48,
            "in_channels": 8 * base_channels,
            "spatial_type": "avg",
            "dropout_ratio": 0.0,
        },
        "data_preprocessor": {
            "type": "ActionDataPreprocessor",
            "mean": PIXEL_MEAN,
            "std": PIXEL_STD,
            "format_shape": "NCTHW",
        },
    }


def _presets() -> dict[str, Preset]:
    stick_r18 = _resnet3d_recognizer(
        base_channels=16,
        spatial_strides=(1, 2, 2, 1),
        temporal_strides=(1, 1, 2, 1),
        inflate=(1, 1, 1, (1, 0)),
    )
    return {"stick_r18": Preset("stick_r18", stick_r18, num_frames=16, size_px=64)}


def preset_names() -> tuple[str, ...]:
    """Names that `get_preset` knows."""
    return tuple(sorted(_presets()))


def get_preset(name: str) -> Preset:
    """The preset called `name`, a fresh copy.

    Raises:
        SettingsError: There is no such preset; the closest name is told.
    """
    presets = _presets()
    if name not in presets:
        close = get_close_matches(name, presets, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {preset_names()}"
        raise SettingsError(f"backbone.name: no backbone is called {name!r}; {hint}")
    return copy.deepcopy(presets[name])
