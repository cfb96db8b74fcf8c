"""Video and image models of the transformers library (optional extra `transformers`).

Enters: a folder as that library saves models (config.json, model.safetensors), such a folder of the
hub by its id, or a preset's name for random weights. Leaves: a `Backbone` whose tokens are folded
back to T, H, W; image models see the frames of a clip one by one.

Only safetensors and the config's plain values are read, and no code of a folder runs: entries by
which the library would load some are refused. What is downloaded: `model_folders`.
Choice: frames are the centres of equal segments, or follow each other at `frame_interval`, for the
library leaves sampling to its users; an image model sees 8, as many as the paper's TPN.
Deviation: DINOv3's processor scales numbers, all others bytes, as is done here: within a grey level
of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError, SettingsError, import_extra
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.hub import PREFIX
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.downloads import digest_of_weights, place_weights
from dsts_pipeline.extract.model_folders import CONFIG, PROCESSORS, fetch_folder, require_plain
from dsts_pipeline.extract.model_zoo import TRANSFORMERS_PRESETS
from dsts_pipeline.extract.pipelines import Pipeline, Scaling
from dsts_pipeline.extract.taps import FrozenModel, Grid, Layout, Tap
from dsts_pipeline.extract.weights import LoadReport, WeightsChoice

_IMAGENET: Mapping[str, Any] = {
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}
_HALVES: Mapping[str, Any] = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_BILINEAR = 2  # as Pillow numbers its filters
_BICUBIC = 3
_SCALINGS: Mapping[int, Scaling] = {_BILINEAR: "bilinear", _BICUBIC: "bicubic"}
# Heads, decoders and towers for text of published files, which the bare models do not have.
_LEFT_OUT = (
    "classifier.",
    "decoder.",
    "encoder_to_decoder.",
    "fc_norm.",
    "logit_",
    "mask_token",
    "pooler.",
    "text_model.",
)
_IMAGE_FRAMES = 8


@dataclass(frozen=True)
class _Kind:
    """One of the library's models, and how it is fed where its folder does not say.

    Attributes:
        model, config: Names of its classes.
        options, run_options: Arguments of the model, and of its forward pass.
        part_of: The entry that holds its config where it is a part of a larger model.
        frames_name: How its config calls T; None: an image model.
        size_name: How its config calls H = W.
        prefix_tokens: Of an image model, tokens before the patches; registers come on top.
        layout: Of its tokens.
        processor: Entries of its processor, by the library's names.
        resize_ratio: What the shorter side is scaled to, in sizes of the square that is cut; None:
            the whole frame becomes the square.
    """

    model: str
    config: str
    options: tuple[tuple[str, Any], ...] = ()
    run_options: tuple[tuple[str, Any], ...] = ()
    part_of: str | None = None
    frames_name: str | None = "num_frames"
    size_name: str = "image_size"
    prefix_tokens: int = 1
    layout: Layout = "THW"
    processor: Mapping[str, Any] = field(default_factory=lambda: _IMAGENET)
    resize_ratio: float | None = 1.0


_VJEPA2 = _Kind(
    "VJEPA2Model",
    "VJEPA2Config",
    run_options=(("skip_predictor", True),),
    frames_name="frames_per_clip",
    size_name="crop_size",
    resize_ratio=256 / 224,
)
_DINOV2 = _Kind(
    "Dinov2Model",
    "Dinov2Config",
    frames_name=None,
    processor={**_IMAGENET, "resample": _BICUBIC},
    resize_ratio=256 / 224,
)
_SIGLIP = _Kind(
    "SiglipVisionModel",
    "SiglipVisionConfig",
    frames_name=None,
    prefix_tokens=0,
    processor={**_HALVES, "resample": _BICUBIC},
    resize_ratio=None,
)
_VIDEOPRISM = _Kind(
    "VideoPrismVisionModel",
    "VideoPrismVisionConfig",
    processor={"resample": _BICUBIC},
    resize_ratio=None,
)
# By the word `model_type` of a config.
_KINDS: Mapping[str, _Kind] = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(
        _DINOV2, model="Dinov2WithRegistersModel", config="Dinov2WithRegistersConfig"
    ),
    "dinov3_vit": _Kind("DINOv3ViTModel", "DINOv3ViTConfig", frames_name=None, resize_ratio=None),
    "siglip": replace(_SIGLIP, config="SiglipConfig", part_of="vision_config"),
    "siglip_vision_model": _SIGLIP,
    "timesformer": _Kind("TimesformerModel", "TimesformerConfig", layout="HWT"),
    "videomae": _Kind("VideoMAEModel", "VideoMAEConfig"),
    "videoprism": replace(_VIDEOPRISM, config="VideoPrismConfig", part_of="vision_config"),
    "videoprism_vision_model": _VIDEOPRISM,
    "vivit": _Kind(
        "VivitModel", "VivitConfig", options=(("add_pooling_layer", False),), processor=_HALVES
    ),
    "vjepa2": _VJEPA2,
}


class TokenModel(FrozenModel):
    """A model of the transformers library; taps are named below `backbone`."""

    runs_without_numbers = True

    def __init__(self, model: Any, kind: _Kind) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"backbone": model})
        self._options = dict(kind.run_options)
        self._sees_frames_alone = kind.frames_name is None
        config = model.config
        if self._sees_frames_alone:
            self.layouts = {4: "NCHW", 3: "NHW"}
            self.num_prefix_tokens = kind.prefix_tokens + getattr(config, "num_register_tokens", 0)
            return
        self.layouts = {5: "BCTHW", 4: "NCHW", 3: kind.layout}
        time, *space = _tubelet_steps(config)
        self._stride = (time, space[0], space[-1])

    @property
    def root(self) -> nn.Module:
        """Holds the model under the name `backbone`."""
        return self.parts

    def last_module(self, taps: Sequence[Tap]) -> str:
        """The whole model runs."""
        return "backbone"

    def run(self, inputs: Tensor, last: str) -> None:
        """The library wants [B, T, 3, H, W], of image models [B * T, 3, H, W]."""
        frames = inputs.transpose(1, 2).contiguous()
        if self._sees_frames_alone:
            frames = frames.flatten(0, 1)
        self.parts["backbone"](frames, **self._options)

    def grid(self, inputs: Tensor) -> Grid | None:
        """Tubelets along T, H, W; of frames seen one by one, squares tell themselves."""
        if self._sees_frames_alone:
            return None
        time, height, width = (
            length // step for length, step in zip(inputs.shape[2:], self._stride, strict=True)
        )
        return time, height, width


def build_transformer(
    name: str,
    choice: WeightsChoice,
    *,
    num_frames: int | None,
    size_px: int | None,
    frame_interval: int | None,
    taps: tuple[str, ...],
) -> Backbone:
    """A backbone of the transformers library.

    Args:
        name: A word of `TRANSFORMERS_PRESETS`, which is how the kind of the model begins, a folder
            with a config.json, or a model of the hub.
        choice: A folder with a model.safetensors, a model of the hub, or random weights.
        num_frames, size_px: The input T and H = W; None: the model's own.
        frame_interval: Frames from one to the next, the last repeated where a clip is short, as
            V-JEPA 2's evaluation has it; None: centres of equal segments.
        taps: Where maps are taken; none: at the model's last tokens.

    Raises:
        UserError: The library is not installed.
        SettingsError: The folder holds another model, or the input does not fit it.
        CheckpointError: The weights are missing, others than expected, or do not fit.
    """
    library = import_extra("transformers", f"backbone.name={name}")
    if not choice.is_random:
        folder = place_weights(choice.source)
    elif name.startswith(PREFIX):
        folder = fetch_folder(name, with_weights=False)
    else:
        folder = Path(name)
    kind_name, config = _read_config(library, name, folder)
    kind = _KINDS[kind_name]
    pipeline = _read_pipeline(kind, config, folder).resized(num_frames=num_frames, size_px=size_px)
    pipeline = pipeline.at_interval(frame_interval)
    if kind is _VJEPA2:  # it has no positions of its own, and finds rows and columns by this
        config.crop_size = pipeline.size_px
    model, origin, report = _load(library, kind, config, folder, choice)
    return Backbone(
        next(preset for preset in TRANSFORMERS_PRESETS if kind_name.startswith(preset)),
        TokenModel(model, kind),
        num_frames=pipeline.num_frames,
        size_px=pipeline.size_px,
        taps=taps or ("backbone",),
        pipeline=pipeline,
        load_report=report,
        description={
            "name": kind_name,
            "recognizer": _settings_of(config),
            "weights": origin,
            "input": pipeline.describe_input(),
            "versions": {"transformers": library.__version__, "torch": torch.__version__},
        },
    )


def _read_config(library: Any, name: str, folder: Path) -> tuple[str, Any]:
    if not (folder / CONFIG).is_file():
        if name in _KINDS and str(folder) == name:  # random weights of a preset
            return name, _own_config(_KINDS[name], getattr(library, _KINDS[name].config)())
        raise CheckpointError(
            f"{folder}: no config.json; expected a folder with config.json and model.safetensors, "
            "as the transformers library saves models"
        )
    values = read_json(folder / CONFIG)
    found = str(values.get("model_type")) if isinstance(values, dict) else "nameless"
    if found not in _KINDS or (name in _KINDS and not found.startswith(name)):
        expected = name if name in _KINDS else " or ".join(_KINDS)
        raise SettingsError(f"{folder}: holds a {found} model, expected {expected}")
    require_plain(folder, values)
    config = getattr(library, _KINDS[found].config).from_dict(values)
    return found, _own_config(_KINDS[found], config)


def _own_config(kind: _Kind, config: Any) -> Any:
    """The config of the model itself, where it is a part of a larger one's."""
    return config if kind.part_of is None else getattr(config, kind.part_of)


def _load(
    library: Any, kind: _Kind, config: Any, folder: Path, choice: WeightsChoice
) -> tuple[Any, dict[str, Any], LoadReport | None]:
    """The model in evaluation mode, where its weights are from, and the report of their keys."""
    model_class = getattr(library, kind.model)
    options = dict(kind.options)
    if choice.is_random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(choice.seed)
            return model_class(config, **options), {"random_seed": choice.seed}, None
    digest = _digest(folder, choice.sha256)
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    model, info = model_class.from_pretrained(
        folder,
        config=config,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        **options,
    )
    unexpected = sorted(str(key) for key in info["unexpected_keys"])
    left_out = tuple(key for key in unexpected if key.startswith(_LEFT_OUT))
    report = LoadReport(
        key_map="transformers",
        matched=tuple(sorted(model.state_dict().keys() - info["missing_keys"])),
        missing=tuple(sorted(map(str, info["missing_keys"]))),
        unexpected=tuple(key for key in unexpected if key not in left_out),
        misshapen=tuple(sorted(str(key) for key in info.get("mismatched_keys", ()))),
        left_out=left_out,
    )
    if report.num_problems:
        raise CheckpointError(
            f"{folder}: its weights do not fit {kind.model}: missing {list(report.missing[:4])}, "
            f"unexpected {list(report.unexpected[:4])}, of another shape "
            f"{list(report.misshapen[:4])}; get the folder again"
        )
    return model, {"sha256": digest}, report


def _digest(folder: Path, expected: str | None) -> str:
    found = digest_of_weights(folder)
    if expected is not None and expected.lower() != found:
        raise CheckpointError(
            f"{folder}: the sha256 of its weights is {found}, backbone.weights_sha256 expects "
            f"{expected}; get the folder again, or correct the setting"
        )
    return found


def _read_pipeline(kind: _Kind, config: Any, folder: Path) -> Pipeline:
    """The input by the model's config, pixels by the folder's processor where it has one.

    Raises:
        SettingsError: The processor does what cannot be done here exactly.
    """
    size = getattr(config, kind.size_name)
    size_px = int(size if isinstance(size, int) else size[0])
    num_frames = int(getattr(config, kind.frames_name)) if kind.frames_name else _IMAGE_FRAMES
    told, source = _read_processor(folder)
    values = {"resample": _BILINEAR, **kind.processor, **told}
    if values["resample"] not in _SCALINGS:
        raise SettingsError(
            f"{source}: it scales by Pillow's filter {values['resample']}, which extraction cannot "
            "do; expected 2 (bilinear) or 3 (bicubic)"
        )
    if kind.resize_ratio is None:
        resize_px = None
    else:
        resize_px = int(size_px * kind.resize_ratio)
    if "size" in told:
        size_px, resize_px = _read_sizes(told, source)
    factor = values.get("rescale_factor") or 1 / 255
    if not values.get("do_rescale", True):
        factor = 1.0
    is_normal = told.get("do_normalize", "image_mean" in {**kind.processor, **told})
    mean = values["image_mean"] if is_normal else (0.0, 0.0, 0.0)
    std = values["image_std"] if is_normal else (1.0, 1.0, 1.0)
    has_offset = told.get("offset", told.get("video_processor_type") == "VivitVideoProcessor")
    offset = 1.0 if has_offset else 0.0
    return Pipeline(
        sampler="segment_centres",
        options={"clip_len": num_frames},
        num_frames=num_frames,
        resize_px=size_px if resize_px is None else resize_px,
        size_px=size_px,
        mean=tuple((value + offset) / factor for value in mean),
        std=tuple(value / factor for value in std),
        scaling=_SCALINGS[values["resample"]],
        squeezes=resize_px is None,
    )


def _read_processor(folder: Path) -> tuple[dict[str, Any], Path]:
    """The entries of the folder's processor, and the file that they are from; {} where none is."""
    for name in PROCESSORS:
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path)
        for part in ("video_processor", "image_processor"):
            values = values.get(part, values)
        return values, path
    return {}, folder


def _read_sizes(processor: Mapping[str, Any], source: Path) -> tuple[int, int | None]:
    """Side of the square, and what the shorter side is scaled to; None: the frame is squeezed."""
    size = processor["size"]
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    is_square = crop is None or crop.get("height") == crop.get("width")
    if processor.get("do_resize", True) and is_square:
        shorter = size.get("shortest_edge")
        if shorter and not size.get("longest_edge"):
            return int(crop["height"] if crop else shorter), int(shorter)
        sides = {size.get("height"), size.get("width")}
        if len(sides) == 1 and None not in sides and crop in (None, {}, size):
            return int(size["height"]), None
    raise SettingsError(
        f"{source}: sizes {size} with crops of {crop} are neither the scaling of the shorter side "
        "and a square from its middle, nor of the whole frame to a square; extraction does these"
    )


def _tubelet_steps(config: Any) -> tuple[int, ...]:
    """Steps of the tubelets along T and along H (and W)."""
    tubelet = getattr(config, "tubelet_size", 1)  # TimeSformer's are patches of one frame
    if isinstance(tubelet, int):
        patch = config.patch_size
        return (tubelet, patch) if isinstance(patch, int) else (tubelet, *patch)
    return tuple(tubelet)


def _settings_of(config: Any) -> dict[str, Any]:
    """The model's settings without what names files and versions."""
    settings = config.to_diff_dict()
    dropped = ("_name_or_path", "transformers_version", "architectures", "id2label", "label2id")
    return {key: value for key, value in settings.items() if key not in (*dropped, "dtype")}
