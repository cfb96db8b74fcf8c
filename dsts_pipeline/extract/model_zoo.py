"""Names -> recognizers by their configurations, and what each is fed.

Enters: the name of a config of mmaction2's model zoo (its wheel ships them), the path of a config
file, or the name of a preset. Leaves: a `ZooModel`: the model's configuration without classifier
and auxiliary heads, which extraction has no use for, and the config's own test pipeline; or our own
`Preset`, whose `recognizer` is a plain mmaction2 config.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.mmaction_compat import accepts, read_config, strip_downloads, zoo_folder
from dsts_pipeline.extract.pipelines import Pipeline, read_pipeline

_CONFIG_SUFFIXES = (".py", ".json", ".yaml", ".yml")
_RECOGNIZERS = ("Recognizer2D", "Recognizer3D")
# Parts of published checkpoints that our recognizers are built without.
LEFT_OUT = ("cls_head.", "neck.aux_head.")


@dataclass(frozen=True)
class ZooModel:
    """A recognizer by its configuration.

    Attributes:
        name: The config's name, without folder and ending.
        recognizer: What mmaction2's registry builds it from.
        pipeline: What it is fed at test time.
    """

    name: str
    recognizer: dict[str, Any] = field(hash=False)
    pipeline: Pipeline

    @property
    def is_2d(self) -> bool:
        """Whether it sees frames one by one, time folded into the batch."""
        return self.recognizer["type"] == "Recognizer2D"


def zoo_names() -> dict[str, Path]:
    """Every recognition config of the wheel by its name, without folder and ending."""
    return {path.stem: path for path in sorted(zoo_folder().rglob("*.py"))}


def is_config_name(name: str) -> bool:
    """Whether `name` is a config of the zoo or the path of a config file."""
    return name.endswith(_CONFIG_SUFFIXES) or name in zoo_names()


def find_config(name: str) -> Path:
    """The file of the config `name`: a path, or a name with or without folder and ending.

    Raises:
        SettingsError: There is no such config; the closest name is told.
    """
    path = Path(name)
    stem = path.stem if path.suffix == ".py" else path.name
    if name.endswith(_CONFIG_SUFFIXES) and path.is_file():
        return path
    names = zoo_names()
    if stem in names:
        return names[stem]
    close = get_close_matches(stem, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"mmaction2 has {len(names)} of them"
    raise SettingsError(f"backbone.name: no config is called {name!r}, in file or zoo; {hint}")


def read_zoo_model(
    name: str,
    *,
    changes: Mapping[str, Any] | None = None,
    pipeline_changes: Mapping[str, Any] | None = None,
) -> ZooModel:
    """The recognizer of a config, ready to be built.

    Args:
        changes: Laid over the model's configuration, dict by dict.
        pipeline_changes: Fields of the `Pipeline` that replace the config's own.

    Raises:
        SettingsError: There is no such config, or it is none of an RGB recognizer.
    """
    path = find_config(name)
    config = read_config(path)
    model = config.get("model", {})
    transforms = config.get("test_pipeline")
    if model.get("type") not in _RECOGNIZERS or not transforms:
        raise SettingsError(
            f"{path}: a {model.get('type', 'config without a model')} with "
            f"{'a' if transforms else 'no'} test_pipeline, expected one of "
            f"{', '.join(_RECOGNIZERS)} with a test_pipeline"
        )
    recognizer = strip_downloads(_lay_over(_without_heads(model), changes or {}))
    backbone = recognizer["backbone"]
    if accepts(backbone["type"], "return_feat_map"):  # VideoMAE gives its mean unless it is asked
        backbone["return_feat_map"] = True
    preprocessor = recognizer.get("data_preprocessor") or {}
    pipeline = read_pipeline(transforms, preprocessor, source=path.stem)
    return ZooModel(path.stem, recognizer, replace(pipeline, **(pipeline_changes or {})))


def _without_heads(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model without what only training and classifying need."""
    kept = {k: v for k, v in model.items() if k not in ("cls_head", "train_cfg", "test_cfg")}
    if "aux_head_cfg" in (kept.get("neck") or {}):
        kept["neck"] = {**kept["neck"], "aux_head_cfg": None}
    return copy.deepcopy(kept)


def _lay_over(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, dict)
        merged[key] = _lay_over(inner, value) if both and inner is not None else value
    return merged


# ---- named recognizers --------------------------------------------------------------------------

# Pixel statistics on the 0..255 scale: (x / 255 - 0.5) / 0.25 for every channel.
PIXEL_MEAN = (127.5, 127.5, 127.5)
PIXEL_STD = (63.75, 63.75, 63.75)


@dataclass(frozen=True)
class Preset:
    """A recognizer's configuration and its native input; pixels are scaled as above."""

    name: str
    recognizer: dict[str, Any]
    num_frames: int
    size_px: int


@dataclass(frozen=True)
class ZooPreset:
    """A config of mmaction2's model zoo, and what is changed in it.

    Attributes:
        config: Its name.
        tap: Where maps are taken unless the settings say otherwise.
        changes: Laid over the model's configuration, dict by dict.
        pipeline_changes: Fields of the `Pipeline` that replace the config's own.
    """

    config: str
    tap: str = "backbone"
    changes: dict[str, Any] = field(default_factory=dict)
    pipeline_changes: dict[str, Any] = field(default_factory=dict)


# Video Swin's recipe for Something-Something v2: a window over all 16 time steps, one frame out of
# each of 32 segments, three crops; https://arxiv.org/abs/2106.13230, section 4.1 and appendix.
_SWIN_B_SSV2 = ZooPreset(
    "swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
    changes={"backbone": {"window_size": (16, 7, 7), "drop_path_rate": 0.4}},
    pipeline_changes={
        "sampler": "swin_uniform",
        "options": {"clip_len": 32, "num_clips": 1},
        "num_frames": 32,
        "resize_px": 224,
        "size_px": 224,
    },
)
ZOO_PRESETS: MappingProxyType[str, ZooPreset] = MappingProxyType(
    {
        "tpn_slowonly_r50": ZooPreset(
            "tpn-slowonly_imagenet-pretrained-r50_8xb8-8x8x1-150e_kinetics400-rgb", tap="neck_time"
        ),
        "tpn_tsm_r50": ZooPreset(
            "tpn-tsm_imagenet-pretrained-r50_8xb8-1x1x8-150e_sthv1-rgb", tap="neck_time"
        ),
        "swin_b": _SWIN_B_SSV2,
        "swin_t": ZooPreset("swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb"),
        "slowfast_r50": ZooPreset("slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb", tap="pathways"),
        "i3d_r50": ZooPreset("i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb"),
        "tsm_r50": ZooPreset("tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb"),
        "mvit_s": ZooPreset("mvit-small-p244_k400-pre_16xb16-u16-100e_sthv2-rgb"),
    }
)
# Models of the transformers library, by the beginning of the word `model_type` in their configs.
TRANSFORMERS_PRESETS = (
    "dinov2",
    "dinov3_vit",
    "siglip",
    "timesformer",
    "videomae",
    "videoprism",
    "vivit",
    "vjepa2",
)
# GST's ResNet-50, and its larger form (`gst`).
GST_PRESETS = ("gst_large_r50", "gst_r50")
# Image models, applied frame by frame: by name, and those of timm as `timm:NAME`.
IMAGE_PRESETS = ("efficientnet_lite0",)
# Of V-JEPA 2.1, by the names that their authors give them.
VJEPA2_1_PRESETS = tuple(
    f"vjepa2_1_vit_{size}_384" for size in ("base", "large", "giant", "gigantic")
)
TIMM = "timm:"


def is_timm_name(name: str) -> bool:
    """Whether `name` is `timm:` and a plain name: never a path, nor an address on a hub."""
    return re.fullmatch(rf"{TIMM}[\w.-]+", name) is not None


# stick_r18, for the embedded data set at 16 frames of 64 x 64 px (output "C T H W"):
#   stem     3x5x5 convolution, stride (1, 2, 2), max-pool (1, 2, 2)    16 x 16 x 16 x 16
#   stage 1  two blocks of two 3x3x3 convolutions                       16 x 16 x 16 x 16
#   stage 2  likewise, space halved                                     32 x 16 x  8 x  8
#   stage 3  likewise, space and time halved                            64 x  8 x  4 x  4
#   stage 4  one block 3x3x3, one 1x3x3                                128 x  8 x  4 x  4
# Choice: time is halved only after stage 2, when nine 3x3x3 convolutions have seen
# neighbouring frames: angular speed is visible between frames, not in one.
_STICK_R18: dict[str, Any] = {
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
        "base_channels": 16,
        "spatial_strides": (1, 2, 2, 1),
        "temporal_strides": (1, 1, 2, 1),
        "inflate": (1, 1, 1, (1, 0)),
    },
    "cls_head": {
        "type": "I3DHead",
        "num_classes": 48,
        "in_channels": 128,
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
_OWN_PRESETS = MappingProxyType(
    {"stick_r18": Preset("stick_r18", _STICK_R18, num_frames=16, size_px=64)}
)


def preset_names() -> tuple[str, ...]:
    """Names that `build_backbone` knows besides configs and folders."""
    others = *TRANSFORMERS_PRESETS, *IMAGE_PRESETS, *VJEPA2_1_PRESETS, *GST_PRESETS
    return tuple(sorted((*_OWN_PRESETS, *ZOO_PRESETS, *others)))


def get_preset(name: str) -> Preset:
    """The preset of our own called `name`, a fresh copy.

    Raises:
        SettingsError: There is no such preset; the closest name is told.
    """
    if name not in _OWN_PRESETS:
        close = get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {preset_names()}"
        raise SettingsError(f"backbone.name: no backbone is called {name!r}; {hint}")
    return copy.deepcopy(_OWN_PRESETS[name])
