"""mmaction2 configs -> a recognizer's configuration and its input.

Enters: the name of a config of mmaction2's model zoo (its wheel ships them), or the path of a
config file. Leaves: a `ZooModel`: the model's configuration without classifier and auxiliary heads,
which extraction has no use for, and the config's own test pipeline.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.frames.pipelines import Pipeline, read_pipeline
from dsts_pipeline.extract.models.mmaction_compat import (
    accepts,
    read_config,
    strip_downloads,
    zoo_folder,
)

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
    path, stem = Path(name), Path(name).stem if name.endswith(".py") else Path(name).name
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
