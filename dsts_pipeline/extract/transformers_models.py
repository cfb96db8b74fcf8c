"""ViViT, VideoMAE and V-JEPA 2 of the transformers library (optional extra `transformers`).

Enters: a folder as that library saves models (config.json, model.safetensors), or a preset's name
for random weights. Leaves: a `Backbone` whose tokens are folded back to T, H, W.

Only safetensors and the config's plain values are read, nothing is downloaded, and no code of a
folder runs: entries by which the library would load some are refused.
Choice: frames are the centres of equal segments, for the library leaves sampling to its users.
Deviation: frames are scaled as for mmaction2's models, bilinearly without antialiasing; the
library's own processors smooth before they shrink.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError, SettingsError, import_extra
from dsts_pipeline.base.files import read_json
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.downloads import digest_of_weights
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.taps import FrozenModel, Grid, Tap
from dsts_pipeline.extract.weights import LoadReport, WeightsChoice

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Heads and decoders of published files, which the bare models do not have.
_LEFT_OUT = ("classifier.", "decoder.", "encoder_to_decoder.", "fc_norm.", "mask_token", "pooler.")
# Entries of a config by which the library imports code of the folder or of its hub, or another
# package's: classes, attention and expert kernels, quantizers.
_LOADING = re.compile(
    r"^auto_map$|^custom_|_implementation(_internal)?$|kernel_config|use_kernels|quantization_config"
)
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class _Kind:
    """One of the library's models: its class, its input, how its sizes are called."""

    model: str
    config: str
    options: tuple[tuple[str, Any], ...] = ()
    run_options: tuple[tuple[str, Any], ...] = ()
    frames_name: str = "num_frames"
    size_name: str = "image_size"
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    resize_ratio: float = 1.0


_KINDS = {
    "videomae": _Kind("VideoMAEModel", "VideoMAEConfig"),
    "vivit": _Kind(
        "VivitModel",
        "VivitConfig",
        options=(("add_pooling_layer", False),),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "vjepa2": _Kind(
        "VJEPA2Model",
        "VJEPA2Config",
        run_options=(("skip_predictor", True),),
        frames_name="frames_per_clip",
        size_name="crop_size",
        resize_ratio=256 / 224,
    ),
}


class TokenModel(FrozenModel):
    """A model of the transformers library; taps are named below `backbone`."""

    def __init__(self, model: Any, kind: _Kind) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"backbone": model})
        self._options = dict(kind.run_options)
        config = model.config
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
        """The library wants [B, T, 3, H, W]."""
        self.parts["backbone"](inputs.transpose(1, 2).contiguous(), **self._options)

    def grid(self, inputs: Tensor) -> Grid | None:
        """Tubelets along T, H, W."""
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
    taps: tuple[str, ...],
) -> Backbone:
    """A backbone of the transformers library.

    Args:
        name: "vivit", "videomae" or "vjepa2", or a folder with a config.json.
        choice: A folder with a model.safetensors, or random weights.
        num_frames, size_px: The input T and H = W; None: the model's own.
        taps: Where maps are taken; none: at the model's last tokens.

    Raises:
        UserError: The library is not installed.
        SettingsError: The folder holds another model, or the input does not fit it.
        CheckpointError: The weights are missing, others than expected, or do not fit.
    """
    library = import_extra("transformers", f"backbone.name={name}")
    folder = Path(name) if choice.is_random else Path(choice.source)
    kind_name, config = _read_config(library, name, folder)
    kind = _KINDS[kind_name]
    model, origin, report = _load(library, kind, config, folder, choice)
    pipeline = _read_pipeline(kind, config, folder).resized(num_frames=num_frames, size_px=size_px)
    return Backbone(
        kind_name,
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
    if not (folder / "config.json").is_file():
        if name in _KINDS and str(folder) == name:  # random weights of a preset
            return name, getattr(library, _KINDS[name].config)()
        raise CheckpointError(
            f"{folder}: no config.json; expected a folder with config.json and model.safetensors, "
            "as the transformers library saves models"
        )
    values = read_json(folder / "config.json")
    found = values.get("model_type") if isinstance(values, dict) else None
    if found not in _KINDS or (name in _KINDS and name != found):
        expected = name if name in _KINDS else " or ".join(_KINDS)
        raise SettingsError(f"{folder}: holds a {found} model, expected {expected}")
    _require_plain(folder, values)
    return found, getattr(library, _KINDS[found].config).from_dict(values)


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


def _require_plain(folder: Path, values: Any) -> None:
    """Refuse a folder by which the library would load code, or weights from elsewhere.

    The class is chosen here, so `auto_map` would be passed over; but whoever names code means it to
    run, and the model would be another one.

    Raises:
        CheckpointError: It names code, kernels of the hub, a quantizer, an adapter, or weights
            outside the folder.
    """
    for key, value in _all_entries(values):
        is_plain = not _LOADING.search(key)
        if key.endswith("_implementation"):
            is_plain = value in (None, "eager", "sdpa")
        if not is_plain:
            raise CheckpointError(
                f"{folder}/config.json: {key} makes the transformers library load code, which is "
                "never done here; delete that entry if the plain model is meant"
            )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: has an adapter_config.json; models with adapters are not read: merge the "
            "adapter into the model, or delete the file"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        parts = content.get("weight_map", {}) if isinstance(content, dict) else {}
        for part in set(parts.values()) if isinstance(parts, dict) else ():
            if not re.fullmatch(r"model[\w-]*\.safetensors", str(part)):
                raise CheckpointError(
                    f"{index}: names the part {part!r}, expected safetensors files of its own "
                    "folder; get the folder again"
                )


def _all_entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Names and values at every depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            yield from _all_entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _all_entries(value)


def _read_pipeline(kind: _Kind, config: Any, folder: Path) -> Pipeline:
    """The input by the model's config, pixels by the folder's processor where it has one."""
    size = getattr(config, kind.size_name)
    size_px = int(size if isinstance(size, int) else size[0])
    num_frames = int(getattr(config, kind.frames_name))
    mean = kind.mean
    std = kind.std
    factor = 1 / 255
    offset = 0.0
    for name in _PROCESSORS:
        if (folder / name).is_file():
            found = read_json(folder / name)
            mean = found.get("image_mean", mean)
            std = found.get("image_std", std)
            factor = found.get("rescale_factor", factor)
            offset = 1.0 if found.get("offset") else 0.0
            break
    return Pipeline(
        sampler="segment_centres",
        options={"clip_len": num_frames},
        num_frames=num_frames,
        resize_px=int(size_px * kind.resize_ratio),
        size_px=size_px,
        mean=tuple((value + offset) / factor for value in mean),
        std=tuple(value / factor for value in std),
    )


def _tubelet_steps(config: Any) -> tuple[int, ...]:
    """Steps of the tubelets along T and along H (and W)."""
    tubelet = config.tubelet_size
    if isinstance(tubelet, int):
        patch = config.patch_size
        return (tubelet, patch) if isinstance(patch, int) else (tubelet, *patch)
    return tuple(tubelet)


def _settings_of(config: Any) -> dict[str, Any]:
    """The model's settings without what names files and versions."""
    settings = config.to_diff_dict()
    dropped = ("_name_or_path", "transformers_version", "architectures", "id2label", "label2id")
    return {key: value for key, value in settings.items() if key not in (*dropped, "dtype")}
