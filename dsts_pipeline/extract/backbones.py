"""Frozen backbones: uint8 frames in, float32 feature maps out.

Enters: frames [B, T, H, W, 3], RGB, or stacks of optical flow [B, T, H, W, 10]. Leaves: a map
[B, C, T', H', W'] for each tap. `build` makes them of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.base.errors import SettingsError, UserError
from dsts_pipeline.extract.flow import NUM_CHANNELS, Modality
from dsts_pipeline.extract.model_zoo import PIXEL_MEAN, PIXEL_STD
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.taps import FrozenModel, MapRule, parse_map
from dsts_pipeline.extract.weights import LoadReport


def normalize_frames(
    frames: Tensor,
    mean: tuple[float, ...] = PIXEL_MEAN,
    std: tuple[float, ...] = PIXEL_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(x - mean) / std, channels moved to the front; pretraining and extraction share it.

    Args:
        frames: uint8 [B, T, H, W, C].
        mean, std: Per channel, on the 0..255 scale.

    Returns:
        `dtype` [B, C, T, H, W]; in memory the channels stay last, which convolutions like.
    """
    scale = frames.new_tensor([1.0 / value for value in std], dtype=dtype)
    shift = frames.new_tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype)
    return torch.addcmul(shift, frames.to(dtype), scale).permute(0, 4, 1, 2, 3)


class Backbone(nn.Module):
    """A frozen model behind the interface that extraction needs.

    Attributes:
        name: The preset's or config's name.
        num_frames, size_px: The input, T and H = W.
        resize_px: What the shorter side of a video is scaled to before a square is cut.
        pipeline: The model's own test pipeline; None: centres of equal segments, scaled by the
            decoder, the square in the middle.
        modality, num_channels: What it is fed: frames (3), or stacks of optical flow (10).
        taps: Names of the maps that `extract` gives, the main one first.
        map_shapes: (C, T', H', W') of the map of one clip, by tap.
        map_shape: The main one's.
        load_report: What became of the keys of the weights file; None for random weights.
    """

    def __init__(
        self,
        name: str,
        model: FrozenModel,
        *,
        num_frames: int,
        size_px: int,
        taps: Sequence[str] = ("backbone",),
        pipeline: Pipeline | None = None,
        description: dict[str, Any],
        load_report: LoadReport | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.num_frames = num_frames
        self.size_px = size_px
        self.pipeline = pipeline
        self.load_report = load_report
        self.resize_px = size_px if pipeline is None else pipeline.resize_px
        self._mean = PIXEL_MEAN if pipeline is None else pipeline.mean
        self._std = PIXEL_STD if pipeline is None else pipeline.std
        self.num_channels = len(self._mean)
        self.modality: Modality = "flow" if self.num_channels == NUM_CHANNELS else "rgb"
        self._description = description
        self._rules: tuple[MapRule, ...] = tuple(parse_map(tap) for tap in dict.fromkeys(taps))
        self.taps = tuple(rule.name for rule in self._rules)
        self.model = model
        self.requires_grad_(False)
        self.eval()
        self.map_shapes = self._measure()
        self.map_shape = self.map_shapes[self.taps[0]]

    @property
    def recognizer(self) -> Any:
        """The mmaction2 recognizer inside."""
        return self.model.recognizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip."""
        return self.num_frames, self.size_px, self.size_px, self.num_channels

    def forward(self, frames: Tensor) -> Tensor:
        """The main tap's maps float32 [B, C, T', H', W'] of frames uint8 [B, T, H, W, 3].

        Raises:
            ValueError: The frames are not of the type and size that the backbone was built for.
        """
        return self._run(frames, self._rules[:1])[self.taps[0]]

    def extract(self, frames: Tensor) -> dict[str, Tensor]:
        """Every tap's maps [B, C, T', H', W'] from one pass over frames uint8 [B, T, H, W, 3].

        Raises:
            ValueError: The frames are not of the type and size that the backbone was built for.
        """
        return self._run(frames, self._rules)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits [B, K] of the recognizer's own head on maps [B, C, T', H', W'].

        Raises:
            SettingsError: The backbone was built without a head.
        """
        return self._head(maps)

    @property
    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight [K, C] and bias [K] of the linear classifier on the globally averaged map."""
        linear = self._head.fc_cls
        return linear.weight.detach().clone(), linear.bias.detach().clone()

    def describe(self, tap: str | None = None) -> dict[str, Any]:
        """All about this backbone that decides the bytes of one tap's map, as plain JSON values.

        How frames are chosen and scaled is said by whoever does it: `pipeline.describe()` where the
        pipeline was followed.

        Args:
            tap: One of `taps`; None: the main one.
        """
        tap = self.taps[0] if tap is None else tap
        changed = {"tap": tap, "map_shape": list(self.map_shapes[tap])}
        return self._description | changed

    @property
    def _head(self) -> Any:
        head = getattr(self.recognizer, "cls_head", None)
        if head is None:
            raise SettingsError(
                f"{self.name} is built without its classifier; expected one of the project's own "
                "presets, or `load_classifier` on the weights file"
            )
        return head

    @property
    def tapped(self) -> tuple[str, ...]:
        """The places that all of its maps are made of."""
        return tuple(dict.fromkeys(tap.name for rule in self._rules for tap in rule.taps))

    def _run(self, frames: Tensor, rules: Sequence[MapRule]) -> dict[str, Tensor]:
        expected = self.input_shape
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 "
                f"(B, {', '.join(map(str, expected))})"
            )
        if self.pipeline is not None and self.pipeline.is_bgr:
            frames = frames.flip(-1)
        dtype = next(self.parameters()).dtype
        taps = {tap.name: tap for rule in rules for tap in rule.taps}
        inputs = normalize_frames(frames, self._mean, self._std, dtype)
        maps = self.model.tap(inputs, list(taps.values()))
        return {rule.name: rule.make(maps) for rule in rules}

    def _measure(self) -> dict[str, tuple[int, int, int, int]]:
        """Shapes of the maps of one clip, by trying: without numbers where the model allows it."""
        sample = torch.zeros(1, *self.input_shape, dtype=torch.uint8)
        if self.model.runs_without_numbers:
            try:
                return self._measure_without_numbers(sample.to("meta"))
            except (RuntimeError, ValueError, NotImplementedError):
                pass  # the pass with numbers says what is wrong, or does it
        try:
            with torch.no_grad():  # in inference mode Swin would cache masks that no graph may hold
                maps = self.extract(sample)
        except ImportError as error:
            raise UserError(
                f"{self.name} cannot run: {error}; what it needs (such as mmcv's compiled "
                "operators) is not among the project's requirements: install it, or choose another "
                "backbone.name"
            ) from error
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise SettingsError(
                f"{self.name} cannot take {self.num_frames} frames of {self.size_px} px "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); expected "
                "its own input: set backbone.num_frames and backbone.size_px to null"
            ) from error
        return {tap: tuple(value.shape[1:]) for tap, value in maps.items()}  # type: ignore[misc]

    def _measure_without_numbers(self, sample: Tensor) -> dict[str, tuple[int, int, int, int]]:
        """The same on torch's device "meta", where a pass of a large model takes no time."""
        everything = _AllMaps(self)
        state = [*everything.named_parameters(), *everything.named_buffers()]
        empty = {name: tensor.to("meta") for name, tensor in state}
        with torch.no_grad():
            maps = functional_call(everything, empty, (sample,))
        return {tap: tuple(value.shape[1:]) for tap, value in maps.items()}


class _AllMaps(nn.Module):
    """A backbone's `extract` as a forward pass."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Every tap's maps."""
        return self.backbone.extract(frames)
