"""Frozen backbones: uint8 frames in, float32 feature maps out.

Enters: frames [B, T, H, W, 3], RGB. Leaves: a map [B, C, T', H', W'] for each tap.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import SettingsError, UserError
from dsts_pipeline.extract.downloads import locate_weights
from dsts_pipeline.extract.mmaction_compat import accepts, build_model
from dsts_pipeline.extract.model_zoo import (
    LEFT_OUT,
    PIXEL_MEAN,
    PIXEL_STD,
    TRANSFORMERS_PRESETS,
    ZOO_PRESETS,
    ZooModel,
    ZooPreset,
    get_preset,
    is_config_name,
    preset_names,
    read_zoo_model,
    zoo_names,
)
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.taps import KEEP_TIME, FrozenModel, Recognizer, Tap, keep_time, parse_tap
from dsts_pipeline.extract.weights import (
    CLASSIFIER_WEIGHT,
    RANDOM,
    KeyMapName,
    LoadReport,
    load_weights,
    read_weights,
)


def normalize_frames(
    frames: Tensor,
    mean: tuple[float, ...] = PIXEL_MEAN,
    std: tuple[float, ...] = PIXEL_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(x - mean) / std, channels moved to the front; pretraining and extraction share it.

    Args:
        frames: uint8 [B, T, H, W, 3].
        mean, std: Per channel, on the 0..255 scale.

    Returns:
        `dtype` [B, 3, T, H, W]; in memory the channels stay last, which convolutions like.
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
        self.name, self.num_frames, self.size_px = name, num_frames, size_px
        self.pipeline, self.load_report = pipeline, load_report
        self.resize_px = size_px if pipeline is None else pipeline.resize_px
        self._mean, self._std = (
            (PIXEL_MEAN, PIXEL_STD) if pipeline is None else (pipeline.mean, pipeline.std)
        )
        self._description = description
        self._taps: tuple[Tap, ...] = tuple(parse_tap(tap) for tap in dict.fromkeys(taps))
        self.taps = tuple(tap.name for tap in self._taps)
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

    def forward(self, frames: Tensor) -> Tensor:
        """The main tap's maps float32 [B, C, T', H', W'] of frames uint8 [B, T, H, W, 3].

        Raises:
            ValueError: The frames are not of the type and size that the backbone was built for.
        """
        return self._run(frames, self._taps[:1])[self.taps[0]]

    def extract(self, frames: Tensor) -> dict[str, Tensor]:
        """Every tap's maps [B, C, T', H', W'] from one pass over frames uint8 [B, T, H, W, 3].

        Raises:
            ValueError: See `forward`.
        """
        return self._run(frames, self._taps)

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

    def _run(self, frames: Tensor, taps: Sequence[Tap]) -> dict[str, Tensor]:
        expected = (self.num_frames, self.size_px, self.size_px, 3)
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, expected torch.uint8 "
                f"(B, {', '.join(map(str, expected))})"
            )
        if self.pipeline is not None and self.pipeline.is_bgr:
            frames = frames.flip(-1)
        dtype = next(self.parameters()).dtype
        return self.model.tap(normalize_frames(frames, self._mean, self._std, dtype), taps)

    def _measure(self) -> dict[str, tuple[int, int, int, int]]:
        """Shapes of the maps of one clip, by trying."""
        sample = torch.zeros(1, self.num_frames, self.size_px, self.size_px, 3, dtype=torch.uint8)
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


def build_backbone(
    name: str,
    *,
    weights: str | Path,
    num_frames: int | None = None,
    size_px: int | None = None,
    taps: Sequence[str] = (),
    weights_sha256: str | None = None,
    key_map: KeyMapName = "auto",
    seed: int = 0,
) -> Backbone:
    """The backbone called `name`, frozen and in evaluation mode.

    Args:
        name: A preset (see `presets`), a config of mmaction2's model zoo by name, a config file by
            path, or a folder of the transformers library.
        weights: A file (safetensors or .pth), an address, for the transformers library a folder;
            or the word "random": weights drawn from `seed`, which `describe` marks.
        num_frames, size_px: The input T and H = W; the model's own by default.
        taps: Where maps are taken, see `taps`; by default the preset's own.
        weights_sha256: The digest that the file must have.
        key_map: How the file's keys are renamed, see `key_maps`.

    Raises:
        SettingsError: There is no such model, or it has no such tap or input.
        CheckpointError: The weights are missing, refused, others than expected, or do not fit.
    """

    return build(
        name,
        weights=weights,
        num_frames=num_frames,
        size_px=size_px,
        taps=tuple(taps),
        weights_sha256=weights_sha256,
        key_map=key_map,
        seed=seed,
    )


# ---- Names -> frozen backbones: presets, configs of mmaction2's model zoo, transformers models.
#
# Enters: a name, weights, the input and taps that are wanted. Leaves: a `Backbone` with its weights
# in place, checked key by key, and a description of all that decides its maps.

# Backbones whose own output is no map: where one is.
_TAP_OF = {
    "C3D": "backbone.conv5b",
    "TimeSformer": "backbone.norm@HWT",
    "UniFormerV2": "backbone.transformer.resblocks.{last}@HWBT",
}


@dataclass(frozen=True)
class WeightsChoice:
    """Which weights a model gets, and how they are checked."""

    source: str | Path
    sha256: str | None = None
    key_map: KeyMapName = "auto"
    seed: int = 0

    @property
    def is_random(self) -> bool:
        """Whether there is no file."""
        return str(self.source) == RANDOM


def build_recognizer_config(name: str, *, num_classes: int | None = None) -> dict[str, Any]:
    """The mmaction2 model config of our own preset `name`, with `num_classes` outputs if given."""
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
    return _construct(build_recognizer_config(name, num_classes=num_classes), seed)


def _construct(config: dict[str, Any], seed: int, *, is_filled: bool = False) -> Any:
    """A recognizer with weights drawn from `seed`; the global random stream is left alone.

    Args:
        is_filled: Weights will be loaded: spare the initialisation, 10 s for TPN.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recognizer = build_model(config)
        if not is_filled:
            recognizer.init_weights()
    return recognizer


def build(
    name: str,
    *,
    weights: str | Path,
    num_frames: int | None,
    size_px: int | None,
    taps: tuple[str, ...],
    weights_sha256: str | None,
    key_map: KeyMapName,
    seed: int,
) -> Backbone:
    """See `backbones.build_backbone`."""
    if weights is None:
        raise SettingsError(
            "backbone.weights is not set; expected a file, an address, or the word random for "
            "weights that were never trained"
        )
    choice = WeightsChoice(weights, weights_sha256, key_map, seed)
    is_named = name in preset_names() or name in zoo_names()
    if name in TRANSFORMERS_PRESETS or (not is_named and (Path(name) / "config.json").is_file()):
        from dsts_pipeline.extract.transformers_models import build_transformer

        return build_transformer(name, choice, num_frames=num_frames, size_px=size_px, taps=taps)
    if name in ZOO_PRESETS or (name not in preset_names() and is_config_name(name)):
        return _build_from_zoo(name, choice, num_frames, size_px, taps)
    return _build_own(name, choice, num_frames, size_px, taps)


def _build_own(
    name: str,
    choice: WeightsChoice,
    num_frames: int | None,
    size_px: int | None,
    taps: tuple[str, ...],
) -> Backbone:
    preset = get_preset(name)
    num_frames, size_px = num_frames or preset.num_frames, size_px or preset.size_px
    config = _fit_classifier(preset.recognizer, choice)
    recognizer = _construct(config, choice.seed, is_filled=not choice.is_random)
    origin, report = fill(recognizer, choice)
    return Backbone(
        name,
        Recognizer(recognizer, is_2d=False),
        num_frames=num_frames,
        size_px=size_px,
        taps=taps or ("backbone",),
        load_report=report,
        description={
            "name": name,
            "recognizer": as_json(config),
            "weights": origin,
            "frames": {"num_frames": num_frames, "sampling": "centres of equal segments"},
            "transforms": [
                {"resize_px": [size_px, size_px]},
                {"mean": list(preset.pixel_mean), "std": list(preset.pixel_std)},
            ],
            "versions": versions("mmaction2"),
        },
    )


def _fit_classifier(config: dict[str, Any], choice: WeightsChoice) -> dict[str, Any]:
    """The recognizer's config with as many classes as the weights know; with none, without."""
    if choice.is_random:
        return config
    state = read_weights(locate_weights(choice.source, sha256=choice.sha256).path)
    if CLASSIFIER_WEIGHT in state:
        head = {**config["cls_head"], "num_classes": len(state[CLASSIFIER_WEIGHT])}
        return {**config, "cls_head": head}
    if any(key.endswith(CLASSIFIER_WEIGHT) for key in state):
        return config
    return {key: value for key, value in config.items() if key != "cls_head"}


def _build_from_zoo(
    name: str,
    choice: WeightsChoice,
    num_frames: int | None,
    size_px: int | None,
    taps: tuple[str, ...],
) -> Backbone:
    preset = ZOO_PRESETS.get(name) or ZooPreset(name)
    model = read_zoo_model(
        preset.config, changes=preset.changes, pipeline_changes=preset.pipeline_changes
    )
    backbone = model.recognizer["backbone"]
    tap = _TAP_OF.get(backbone["type"], preset.tap)
    taps = taps or (tap.format(last=backbone.get("layers", 1) - 1),)
    pipeline = model.pipeline.resized(num_frames=num_frames, size_px=size_px)
    config = _fit_segments(model, pipeline.num_frames)
    recognizer = _construct(config, choice.seed, is_filled=not choice.is_random)
    origin, report = fill(recognizer, choice, leave_out=LEFT_OUT)
    _keep_time_if_tapped(recognizer, taps)
    return Backbone(
        model.name if name not in ZOO_PRESETS else name,
        Recognizer(recognizer, is_2d=model.is_2d),
        num_frames=pipeline.num_frames,
        size_px=pipeline.size_px,
        taps=taps,
        pipeline=pipeline,
        load_report=report,
        description={
            "name": model.name,
            "recognizer": as_json(config),
            "weights": origin,
            "input": pipeline.describe_input(),
            "versions": versions("mmaction2"),
        },
    )


def fill(
    recognizer: nn.Module, choice: WeightsChoice, *, leave_out: tuple[str, ...] = ()
) -> tuple[dict[str, Any], LoadReport | None]:
    """Load the chosen weights; where they are from, for a description, and the report of keys.

    Raises:
        CheckpointError: The weights are missing, refused, others than expected, or do not fit.
    """
    if choice.is_random:
        return {"random_seed": choice.seed}, None
    file = locate_weights(choice.source, sha256=choice.sha256)
    report = load_weights(recognizer, file.path, key_map=choice.key_map, leave_out=leave_out)
    return {"sha256": file.sha256}, report


def versions(*packages: str) -> dict[str, str]:
    """Versions of what computes the maps."""
    found = {package: importlib.metadata.version(package) for package in packages}
    return found | {"torch": torch.__version__}


def as_json(value: Any) -> Any:
    """Tuples become lists, so that a description survives a round trip through JSON."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _fit_segments(model: ZooModel, num_frames: int) -> dict[str, Any]:
    """The model's config; 2-D backbones that look across frames are told how many there are."""
    backbone = model.recognizer["backbone"]
    if not model.is_2d or not accepts(backbone["type"], "num_segments"):
        return model.recognizer
    return {**model.recognizer, "backbone": {**backbone, "num_segments": num_frames}}


def _keep_time_if_tapped(recognizer: Any, taps: tuple[str, ...]) -> None:
    if KEEP_TIME not in taps:
        return
    others = [tap for tap in taps if tap != KEEP_TIME and tap.split(".")[0].startswith("neck")]
    if others:
        raise SettingsError(
            f"backbone.taps: {KEEP_TIME} changes the neck, so that {', '.join(others)} would not "
            "be the published one's; take them in another extraction"
        )
    keep_time(getattr(recognizer, "neck", None))
