"""Frozen recognizers: uint8 frames in, float32 feature maps and the recognizer's own logits out.

Enters: frames [B, T, H, W, 3], RGB. Leaves: maps [B, C, T', H', W'] and logits [B, K].
The recognizers are mmaction2's: built from its registry, with its parameter names.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.extract.mmaction_compat import build_model
from dsts_pipeline.extract.presets import PIXEL_MEAN, PIXEL_STD, Preset, get_preset
from dsts_pipeline.extract.weights import load_weights


def normalize_frames(
    frames: Tensor,
    mean: tuple[float, ...] = PIXEL_MEAN,
    std: tuple[float, ...] = PIXEL_STD,
) -> Tensor:
    """(x - mean) / std, channels moved to the front; pretraining and extraction share it.

    Args:
        frames: uint8 [B, T, H, W, 3].
        mean, std: Per channel, on the 0..255 scale.

    Returns:
        float32 [B, 3, T, H, W]; in memory the channels stay last, which convolutions like.
    """
    scale = frames.new_tensor([1.0 / value for value in std], dtype=torch.float32)
    shift = frames.new_tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)
    return torch.addcmul(shift, frames.float(), scale).permute(0, 4, 1, 2, 3)


def build_recognizer_config(name: str, *, num_classes: int | None = None) -> dict[str, Any]:
    """The mmaction2 model config of preset `name`, with `num_classes` outputs if given."""
    config = get_preset(name).recognizer
    if num_classes is not None:
        config["cls_head"]["num_classes"] = num_classes
    return config


def build_recognizer(name: str, *, num_classes: int | None = None, seed: int = 0) -> Any:
    """A trainable mmaction2 recognizer with random weights drawn from `seed`.

    Its `backbone(x)` maps [B, 3, T, H, W] to [B, C, T', H', W'], its `cls_head(map)` gives logits
    [B, K], its linear classifier is `cls_head.fc_cls`. Note that `backbone.train()` and `.eval()`
    of mmaction2's ResNet3d return None: do not chain them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recognizer = build_model(build_recognizer_config(name, num_classes=num_classes))
        recognizer.init_weights()
    return recognizer


class Backbone(nn.Module):
    """A frozen recognizer behind the interface that extraction needs.

    Attributes:
        name: The preset's name.
        num_frames, size_px: The input, T and H = W.
        map_shape: (C, T', H', W') of the map of one clip.
    """

    def __init__(
        self,
        preset: Preset,
        recognizer: Any,
        *,
        num_frames: int,
        size_px: int,
        weights: dict[str, Any],
    ) -> None:
        super().__init__()
        self.name, self.num_frames, self.size_px = preset.name, num_frames, size_px
        self._preset, self._weights = preset, weights
        self.recognizer = recognizer
        recognizer.backbone.to(memory_format=torch.channels_last_3d)
        self.requires_grad_(False)
        self.eval()
        with torch.inference_mode():
            sample = torch.zeros(1, num_frames, size_px, size_px, 3, dtype=torch.uint8)
            shape = tuple(self.forward(sample).shape[1:])
        self.map_shape: tuple[int, int, int, int] = shape  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, frames: Tensor) -> Tensor:
        """Feature maps float32 [B, C, T', H', W'] of frames uint8 [B, T, H, W, 3].

        Raises:
            ValueError: The frames are not of the type and size that the backbone was built for.
        """
        expected = (self.num_frames, self.size_px, self.size_px, 3)
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 "
                f"(B, {', '.join(map(str, expected))})"
            )
        inputs = normalize_frames(frames, self._preset.pixel_mean, self._preset.pixel_std)
        return self.recognizer.backbone(inputs).contiguous()

    def classify(self, maps: Tensor) -> Tensor:
        """Logits [B, K] of the recognizer's own head on maps [B, C, T', H', W']."""
        return self.recognizer.cls_head(maps)

    @property
    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight [K, C] and bias [K] of the linear classifier on the globally averaged map."""
        linear = self.recognizer.cls_head.fc_cls
        return linear.weight.detach().clone(), linear.bias.detach().clone()

    def describe(self) -> dict[str, Any]:
        """All about this backbone that decides a map's bytes, as plain JSON values."""
        return {
            "name": self.name,
            "recognizer": _as_json(self._preset.recognizer),
            "weights": self._weights,
            "tap": "backbone",
            "map_shape": list(self.map_shape),
            "frames": {"num_frames": self.num_frames, "sampling": "centres of equal segments"},
            "transforms": [
                {"resize_px": [self.size_px, self.size_px]},
                {"mean": list(self._preset.pixel_mean), "std": list(self._preset.pixel_std)},
            ],
            "versions": {
                "mmaction2": importlib.metadata.version("mmaction2"),
                "torch": torch.__version__,
            },
        }


def build_backbone(
    name: str,
    *,
    weights: str | Path | None,
    num_frames: int | None = None,
    size_px: int | None = None,
) -> Backbone:
    """The backbone of preset `name`, frozen and in evaluation mode.

    Args:
        weights: A safetensors file with the recognizer's keys; None for random weights, which
            only tests and pretraining want, and which `describe` marks.
        num_frames, size_px: The input T and H = W; the preset's own by default.

    Raises:
        SettingsError: No preset has this name.
        CheckpointError: The weights are missing or do not fit.
    """
    preset = get_preset(name)
    recognizer = build_recognizer(name)
    origin: dict[str, Any] = {"random_seed": 0}
    if weights is not None:
        load_weights(recognizer, weights)
        origin = {"sha256": sha256_file(weights)}
    return Backbone(
        preset,
        recognizer,
        num_frames=num_frames or preset.num_frames,
        size_px=size_px or preset.size_px,
        weights=origin,
    )


def _as_json(value: Any) -> Any:
    """Tuples become lists, so that a description survives a round trip through JSON."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
