"""Names -> frozen backbones: presets, configs of mmaction2's zoo, transformers and image models.

Enters: a name, weights, the input and taps that are wanted. Leaves: a `Backbone` with its weights
in place, checked key by key, and a description of all that decides its maps.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.hub import PREFIX, own_weights
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.flow import MEAN, NUM_CHANNELS, STD, Modality
from dsts_pipeline.extract.gst import GSTResNet50
from dsts_pipeline.extract.image_models import build_image_model
from dsts_pipeline.extract.mmaction_compat import accepts, build_model
from dsts_pipeline.extract.model_folders import CONFIG
from dsts_pipeline.extract.model_zoo import (
    GST_PRESETS,
    IMAGE_PRESETS,
    LEFT_OUT,
    PIXEL_MEAN,
    PIXEL_STD,
    TIMM,
    TRANSFORMERS_PRESETS,
    VJEPA2_1_PRESETS,
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
from dsts_pipeline.extract.taps import KEEP_TIME, Recognizer, keep_time, parse_map
from dsts_pipeline.extract.transformers_models import build_transformer
from dsts_pipeline.extract.vjepa2_1 import build_vjepa2_1
from dsts_pipeline.extract.weights import CLASSIFIER_WEIGHT, KeyMapName, WeightsChoice

# Backbones whose own output is no map: where one is.
_TAP_OF = {
    "C3D": "backbone.conv5b",
    "TimeSformer": "backbone.norm@HWT",
    "UniFormerV2": "backbone.transformer.resblocks.{last}@HWBT",
}


def build_backbone(
    name: str,
    *,
    weights: str | Path | None,
    num_frames: int | None = None,
    size_px: int | None = None,
    frame_interval: int | None = None,
    taps: Sequence[str] = (),
    weights_sha256: str | None = None,
    key_map: KeyMapName = "auto",
    input: Modality = "rgb",
    seed: int = 0,
) -> Backbone:
    """The backbone called `name`, frozen and in evaluation mode.

    Args:
        name: A preset (see `model_zoo`), a config of mmaction2's model zoo by name, a config file
            by path, a folder of the transformers library, or `timm:` and a name of timm's.
        weights: A file (safetensors or .pth), an address, a reference to a package's file (see
            `downloads`), for the transformers library a folder; or the word "random": weights
            drawn from `seed`, which `describe` marks.
        num_frames, size_px: The input T and H = W; the model's own by default.
        frame_interval: Of the transformers library's models and V-JEPA 2.1: frames from one to the
            next; None: centres of equal segments.
        taps: Where maps are taken, see `taps`; by default the preset's own.
        weights_sha256: The digest that the file must have.
        key_map: How the file's keys are renamed, see `weights`.
        input: "flow": the model's first layer takes the ten channels of a stack of optical flow
            (see `flow`) in place of a frame's three.

    Raises:
        SettingsError: There is no such model, or it has no such tap or input.
        CheckpointError: The weights are missing, refused, others than expected, or do not fit.
    """
    try:
        weights = own_weights(name, None if weights is None else str(weights))
    except ValueError as error:
        raise SettingsError(f"backbone: {error}") from None
    if weights is None:
        raise SettingsError(
            "backbone.weights is null; expected a file, an address, or the word random for weights "
            "that were never trained"
        )
    choice = WeightsChoice(weights, weights_sha256, key_map, seed)
    taps = tuple(taps)
    of_library = _is_transformer(name)
    if frame_interval is not None and not of_library and name not in VJEPA2_1_PRESETS:
        raise SettingsError(
            f"backbone.frame_interval is {frame_interval}, and {name} has a rule of its own by "
            "which frames are chosen; set it to null"
        )
    if name in IMAGE_PRESETS or name.startswith(TIMM):
        return build_image_model(
            name, choice, num_frames=num_frames, size_px=size_px, taps=taps, modality=input
        )
    is_in_zoo = name in ZOO_PRESETS or (name not in preset_names() and is_config_name(name))
    if input == "flow" and (of_library or not is_in_zoo):
        raise _no_flow(name)
    if name in GST_PRESETS:
        return _build_gst(name, choice, num_frames, size_px, taps)
    rule: dict[str, Any] = {"num_frames": num_frames, "size_px": size_px}
    rule["frame_interval"] = frame_interval
    if name in VJEPA2_1_PRESETS:
        return build_vjepa2_1(name, choice, **rule, taps=taps)
    if of_library:
        return build_transformer(name, choice, **rule, taps=taps)
    if is_in_zoo:
        return _build_from_zoo(name, choice, num_frames, size_px, taps, input)
    return _build_own(name, choice, num_frames, size_px, taps)


def _is_transformer(name: str) -> bool:
    """Whether it is a preset, a folder or a hub's model of the transformers library."""
    if name in TRANSFORMERS_PRESETS or name.startswith(PREFIX):
        return True
    known = name in preset_names() or name in zoo_names()
    return not known and (Path(name) / CONFIG).is_file()


def choose_backbone(chosen: BackboneSettings) -> Backbone:
    """The backbone of the settings, frozen, on the CPU.

    Raises:
        SettingsError: There is no such model, or it has no such tap or input.
        CheckpointError: There are no sound weights.
    """
    return build_backbone(
        chosen.name,
        weights=chosen.weights,
        num_frames=chosen.num_frames,
        size_px=chosen.size_px,
        frame_interval=chosen.frame_interval,
        taps=chosen.taps,
        weights_sha256=chosen.weights_sha256,
        key_map=chosen.key_map,
        input=chosen.input,
    )


def _no_flow(name: str) -> SettingsError:
    return SettingsError(
        f"backbone.input is flow, and {name} takes frames alone; expected a recognizer of "
        "mmaction2 whose backbone has `in_channels`, such as tsm_r50, or a model of timm"
    )


# ---- trainable recognizers of our own presets ---------------------------------------------------


def build_recognizer(name: str, *, num_classes: int | None = None, seed: int = 0) -> Any:
    """A trainable mmaction2 recognizer of our own preset `name`, with weights drawn from `seed`.

    Its `backbone(x)` maps [B, 3, T, H, W] to [B, C, T', H', W'], its `cls_head(map)` gives logits
    [B, K], its linear classifier is `cls_head.fc_cls`. Note that `backbone.train()` and `.eval()`
    of mmaction2's ResNet3d return None: do not chain them.
    """
    config = get_preset(name).recognizer
    if num_classes is not None:
        config["cls_head"]["num_classes"] = num_classes
    return _construct(config, seed)


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


# ---- mmaction2's recognizers --------------------------------------------------------------------


def _build_own(
    name: str,
    choice: WeightsChoice,
    num_frames: int | None,
    size_px: int | None,
    taps: tuple[str, ...],
) -> Backbone:
    preset = get_preset(name)
    num_frames = num_frames or preset.num_frames
    size_px = size_px or preset.size_px
    config = _fit_classifier(preset.recognizer, choice)
    recognizer = _construct(config, choice.seed, is_filled=not choice.is_random)
    origin, report = choice.fill(recognizer)
    return Backbone(
        name,
        Recognizer(recognizer, is_2d=False),
        num_frames=num_frames,
        size_px=size_px,
        taps=taps or ("backbone",),
        load_report=report,
        description={
            "name": name,
            "recognizer": _as_json(config),
            "weights": origin,
            "frames": {"num_frames": num_frames, "sampling": "centres of equal segments"},
            "transforms": [
                {"resize_px": [size_px, size_px]},
                {"mean": list(PIXEL_MEAN), "std": list(PIXEL_STD)},
            ],
            "versions": _versions(),
        },
    )


def _fit_classifier(config: dict[str, Any], choice: WeightsChoice) -> dict[str, Any]:
    """The recognizer's config with as many classes as the weights know; with none, without."""
    if choice.is_random:
        return config
    state = choice.read()
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
    modality: Modality,
) -> Backbone:
    preset = ZOO_PRESETS.get(name) or ZooPreset(name)
    model = read_zoo_model(
        preset.config, changes=preset.changes, pipeline_changes=preset.pipeline_changes
    )
    if modality == "flow":
        model = _fed_flow(name, model)
    backbone = model.recognizer["backbone"]
    tap = _TAP_OF.get(backbone["type"], preset.tap)
    taps = taps or (tap.format(last=backbone.get("layers", 1) - 1),)
    pipeline = model.pipeline.resized(num_frames=num_frames, size_px=size_px)
    config = _fit_segments(model, pipeline.num_frames)
    recognizer = _construct(config, choice.seed, is_filled=not choice.is_random)
    origin, report = choice.fill(recognizer, leave_out=LEFT_OUT)
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
            "recognizer": _as_json(config),
            "weights": origin,
            "input": pipeline.describe_input(),
            "versions": _versions(),
        },
    )


def _fed_flow(name: str, model: ZooModel) -> ZooModel:
    """The model with a first layer for stacks of flow; frames are chosen and scaled as before."""
    backbone = model.recognizer["backbone"]
    if not accepts(backbone["type"], "in_channels"):
        raise _no_flow(name)
    backbone = {**backbone, "in_channels": NUM_CHANNELS}
    pipeline = dataclasses.replace(model.pipeline, mean=MEAN, std=STD, is_bgr=False)
    # The recognizer's own statistics are not used: frames reach it normalised.
    return dataclasses.replace(
        model, recognizer={**model.recognizer, "backbone": backbone}, pipeline=pipeline
    )


def _versions() -> dict[str, str]:
    """Versions of what computes the maps."""
    return {"mmaction2": importlib.metadata.version("mmaction2"), "torch": torch.__version__}


def _as_json(value: Any) -> Any:
    """Tuples become lists, so that a description survives a round trip through JSON."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _fit_segments(model: ZooModel, num_frames: int) -> dict[str, Any]:
    """The model's config; 2-D backbones that look across frames are told how many there are."""
    backbone = model.recognizer["backbone"]
    if not model.is_2d or not accepts(backbone["type"], "num_segments"):
        return model.recognizer
    return {**model.recognizer, "backbone": {**backbone, "num_segments": num_frames}}


def _keep_time_if_tapped(recognizer: Any, taps: tuple[str, ...]) -> None:
    places = [part.name for tap in taps for part in parse_map(tap).taps]
    if KEEP_TIME not in places:
        return
    others = [tap for tap in places if tap != KEEP_TIME and tap.split(".")[0].startswith("neck")]
    if others:
        raise SettingsError(
            f"backbone.taps: {KEEP_TIME} changes the neck, so that {', '.join(others)} would not "
            "be the published one's; take them in another extraction"
        )
    keep_time(getattr(recognizer, "neck", None))


# ---- GST ----------------------------------------------------------------------------------------


def _build_gst(
    name: str,
    choice: WeightsChoice,
    num_frames: int | None,
    size_px: int | None,
    taps: tuple[str, ...],
) -> Backbone:
    """GST as its authors test it: the centres of 8 or 16 segments, 224 px in the middle of 256.

    Source: https://github.com/chenxuluo/GST-video, `models.py` and `main.py`.
    """
    num_frames = num_frames or 8
    pipeline = Pipeline(
        sampler="segment_centres",
        options={"clip_len": num_frames},
        num_frames=num_frames,
        resize_px=256,
        size_px=224,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        scaling="pillow_bilinear",
    ).resized(size_px=size_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        model = GSTResNet50(beta=1 if name == "gst_large_r50" else 2)
    recognizer = nn.ModuleDict({"backbone": model})
    origin, report = choice.fill(recognizer, leave_out=LEFT_OUT)
    return Backbone(
        name,
        Recognizer(recognizer, is_2d=False),
        num_frames=num_frames,
        size_px=pipeline.size_px,
        pipeline=pipeline,
        taps=taps or ("backbone",),
        description={
            "name": name,
            "weights": origin,
            "input": pipeline.describe_input(),
            "versions": {"torch": torch.__version__},
        },
        load_report=report,
    )
