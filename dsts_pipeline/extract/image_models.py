"""Image models, applied frame by frame: timm's by name, and EfficientNet-Lite0.

Enters: `timm:` and a name of timm's (optional extra `timm`), or "efficientnet_lite0" (optional
extra `lite`, whose weights lie in a package). Leaves: a `Backbone` whose map [C, T, H, W] is made
of the model's last features [C, H, W], before the pooling, of each of T frames.

Nothing is downloaded: models are built without weights, which come from a file as timm saves them.
Choice: frames are the centres of equal segments, 8 by default, as many as the paper's TPN sees.
timm's models are fed as `timm.data.create_transform` feeds them at test, bit for bit; its border
crops, and crops that are larger than the picture, are refused.
Deviation: frames of EfficientNet-Lite0 are scaled as for mmaction2's models, bilinearly without
antialiasing, their shorter side to the model's size.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import EXTRA_OF, SettingsError, UserError, explain_missing
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.flow import MEAN, NUM_CHANNELS, STD, Modality
from dsts_pipeline.extract.model_zoo import LEFT_OUT, TIMM, is_timm_name
from dsts_pipeline.extract.pipelines import Pipeline, Scaling
from dsts_pipeline.extract.taps import Grid, Recognizer, Tap
from dsts_pipeline.extract.weights import WeightsChoice

_NUM_FRAMES = 8
_SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {"bilinear": "pillow_bilinear", "bicubic": "pillow_bicubic"}
)


class ImageModel(Recognizer):
    """An image model as a 2-D recognizer's `backbone`, which gives its map.

    Args:
        model: Has `forward_features`, by timm's names also `output_fmt` and `num_prefix_tokens`.
    """

    def __init__(self, model: Any) -> None:
        model.forward = model.forward_features
        super().__init__(nn.ModuleDict({"backbone": model}), is_2d=True)
        self.layouts = {4: getattr(model, "output_fmt", "NCHW"), 3: "NHW"}
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 1)

    def tap(self, inputs: Tensor, taps: Sequence[Tap]) -> dict[str, Tensor]:
        """Maps [B, C, T, H', W'] by the names of the taps, from one pass.

        Raises:
            SettingsError: A tap names no module, or gives no map of each frame.
        """
        maps = super().tap(inputs, taps)
        for name, value in maps.items():
            if value.shape[2] != inputs.shape[2]:  # windows of Swin, which look like more frames
                raise SettingsError(
                    f"backbone.taps: {name} gives {value.shape[2]} parts for {inputs.shape[2]} "
                    "frames; tap a module that sees a frame as a whole"
                )
            if value.shape[3] != value.shape[4]:  # frames are squares
                raise SettingsError(
                    f"backbone.taps: {name} gives {tuple(value.shape[3:])} cells of a square "
                    "frame; tap another module, or say its layout as module@LAYOUT"
                )
        return maps

    def grid(self, inputs: Tensor) -> Grid | None:
        """Tokens make squares, which need no grid."""
        return None


class _Found(NamedTuple):
    """A model without its classifier, and what it is fed.

    Attributes:
        left_out: Names of the parameters that went with the classifier.
        size_px: H = W.
        mean, std: On the 0..1 scale.
        versions: Of what computes the maps.
        cut: The pipeline's `resize_px`, `scaling` and `squeezes`, where they are not its own.
    """

    model: Any
    left_out: tuple[str, ...]
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    versions: dict[str, str]
    cut: Mapping[str, Any] = MappingProxyType({})


def build_image_model(
    name: str,
    choice: WeightsChoice,
    *,
    num_frames: int | None,
    size_px: int | None,
    taps: tuple[str, ...],
    modality: Modality = "rgb",
) -> Backbone:
    """A backbone that sees frames one by one.

    Args:
        name: "efficientnet_lite0", or "timm:" and a name, such as "timm:resnet50.a1_in1k".
        choice: A file with the library's own names of parameters, or random weights.
        num_frames, size_px: The input T and H = W; None: 8 and the model's own.
        taps: Where maps are taken; none: at the model's last features.
        modality: "flow": stacks of optical flow in place of frames; of timm's models alone.

    Raises:
        UserError: The library is not installed.
        SettingsError: It has no such model, or the model takes no such input.
        CheckpointError: The weights are missing, others than expected, or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        if name.startswith(TIMM):
            found = _make_timm(name, size_px, modality)
        elif modality == "flow":
            raise SettingsError(
                f"backbone.input is flow, and {name} takes frames alone; expected a model of timm"
            )
        else:
            found = _make_lite0(size_px)
    model = ImageModel(found.model)
    left_out = tuple(f"backbone.{key}" for key in found.left_out)
    origin, report = choice.fill(model.recognizer, leave_out=(*LEFT_OUT, *left_out))
    num_frames = num_frames or _NUM_FRAMES
    pipeline = Pipeline(
        sampler="segment_centres",
        options={"clip_len": num_frames},
        num_frames=num_frames,
        size_px=found.size_px,
        **{"resize_px": found.size_px, **found.cut},
        mean=MEAN if modality == "flow" else tuple(255 * value for value in found.mean),
        std=STD if modality == "flow" else tuple(255 * value for value in found.std),
    )
    return Backbone(
        name,
        model,
        num_frames=num_frames,
        size_px=found.size_px,
        taps=taps or ("backbone",),
        pipeline=pipeline,
        load_report=report,
        description={
            "name": name,
            "weights": origin,
            "input": pipeline.describe_input(),
            "versions": found.versions | {"torch": torch.__version__},
        },
    )


def _make_timm(name: str, size_px: int | None, modality: Modality) -> _Found:
    library = _import("timm")
    model_name = name.removeprefix(TIMM)
    architecture = model_name.partition(".")[0]
    if not is_timm_name(name) or not library.is_model(architecture):
        close = get_close_matches(architecture, library.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() names them"
        raise SettingsError(
            f"backbone.name: timm {library.__version__} has no model {model_name!r}; {hint}"
        )
    try:
        changed = {"in_chans": NUM_CHANNELS} if modality == "flow" else {}
        model = library.create_model(model_name, pretrained=False, **changed)
    except RuntimeError as error:  # what follows the dot
        known = [n for n in library.list_pretrained() if n.partition(".")[0] == architecture]
        raise SettingsError(
            f"backbone.name: timm {library.__version__} has no {model_name!r} "
            f"({str(error).splitlines()[0]}); expected {architecture}, or one of "
            f"{', '.join(known[:4])}"
        ) from None
    told = library.data.resolve_model_data_config(model)
    own_px = int(told["input_size"][-1])
    if size_px is None and told["input_size"][-2] != own_px:
        raise SettingsError(
            f"backbone.size_px is null, and {model_name} takes {told['input_size'][-2]} x {own_px} "
            "px, while extraction cuts squares; set their side, or choose another model"
        )
    if model.pretrained_cfg.get("fixed_input_size") and size_px not in (None, own_px):
        raise SettingsError(
            f"backbone.size_px is {size_px}, {model_name} takes {own_px} px and no other size; set "
            "it to null, or choose a model of that size"
        )
    keys = model.state_dict().keys()
    model.reset_classifier(0)
    return _Found(
        model,
        left_out=tuple(keys - model.state_dict().keys()),
        size_px=size_px or own_px,
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
        versions={"timm": library.__version__},
        cut=_read_cut(told, model_name, size_px or own_px),
    )


def _read_cut(told: Mapping[str, Any], model_name: str, size_px: int) -> dict[str, Any]:
    """What timm's test transform does with a picture, by the model's data config.

    "center": the shorter side becomes size / crop_pct, and a square is cut from the middle.
    "squash": so do both sides.

    Raises:
        SettingsError: It does something else.
    """
    mode, share, filter_ = (told[key] for key in ("crop_mode", "crop_pct", "interpolation"))
    if mode not in ("center", "squash") or share > 1 or filter_ not in _SCALINGS:
        raise SettingsError(
            f"backbone.name: timm feeds {model_name} with crop_mode {mode}, crop_pct {share:g} and "
            f"{filter_} scaling, which extraction cannot do; expected center or squash, at most 1, "
            "and bilinear or bicubic: choose another model"
        )
    return {
        "resize_px": math.floor(size_px / share),
        "scaling": _SCALINGS[filter_],
        "squeezes": mode == "squash",
    }


def _make_lite0(size_px: int | None) -> _Found:
    """EfficientNet-Lite0 in the PyTorch form of efficientnet-lite-pytorch.

    Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, whose
    pixels are (x - 127) / 128. Its layers are built for one size, since they pad as TensorFlow
    does.
    """
    library = _import("efficientnet_lite_pytorch")
    size_px = size_px or 224
    model = library.EfficientNet.from_name("efficientnet-lite0", image_size=size_px)
    model._fc = nn.Identity()
    model.forward_features = model.extract_features
    return _Found(
        model,
        left_out=("_fc.weight", "_fc.bias"),
        size_px=size_px,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        versions={
            "efficientnet-lite-pytorch": importlib.metadata.version("efficientnet-lite-pytorch")
        },
    )


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise explain_missing(error, "this image model", EXTRA_OF[package]) from None
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"{package} cannot be imported ({str(error).splitlines()[0]}); it needs a torchvision "
            f"that was built for torch {torch.__version__}: install the two together"
        ) from None
