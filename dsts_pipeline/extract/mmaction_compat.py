"""The one door to mmaction2 1.2.0: its import traps are handled here and nowhere else.

Enters: a model configuration. Leaves: the model, built by mmaction2's registry.

Five traps:
1. The wheel lacks `mmaction/models/localizers/drn`, which its own package imports
   (mmaction2 issue 2714): an empty stand-in takes its place.
2. It imports `importlib_metadata` without declaring it: our requirements name it.
3. It refuses mmcv >= 2.2: our requirements pin mmcv-lite 2.1.0.
4. It imports OpenCV, whose wheels need libGL, libX11 and libglib of the system, which a bare
   machine lacks. Recognizers never call OpenCV, so a stand-in takes its place there; it says so
   as soon as somebody calls it.
5. Where transformers is installed, it imports its multimodal models, too, which need timm: an empty
   stand-in takes their place.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import UserError

_DRN = "mmaction.models.localizers.drn"
_MULTIMODAL = "mmaction.models.multimodal"


class _Absent:
    """What the OpenCV stand-in holds under every name; calling it explains itself."""

    def __init__(self, name: str, reason: str) -> None:
        self._name, self._reason = name, reason

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            f"OpenCV's {self._name} was called, but OpenCV cannot be loaded here "
            f"({self._reason}); install its system libraries (libgl1, libglib2.0-0)"
        )


class _OpenCvStandIn(types.ModuleType):
    def __init__(self, reason: str) -> None:
        super().__init__("cv2", "Stands in for OpenCV where its shared libraries are missing.")
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.isupper():
            return 0  # a flag: mmcv combines them while it is imported
        return _Absent(name, self._reason)


def _import_opencv() -> None:
    environment = dict(os.environ)
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        sys.modules["cv2"] = _OpenCvStandIn(str(error))
    finally:  # its loader changes LD_LIBRARY_PATH, which our child processes would inherit
        os.environ.clear()
        os.environ.update(environment)


def _stand_in_for_drn() -> None:
    package = importlib.util.find_spec("mmaction")
    folders = (package.submodule_search_locations or []) if package else []
    if any((Path(folder) / "models" / "localizers" / "drn").is_dir() for folder in folders):
        return
    stub, module = types.ModuleType(_DRN), types.ModuleType(f"{_DRN}.drn")
    module.DRN = type("DRN", (), {})  # type: ignore[attr-defined]
    sys.modules[_DRN], sys.modules[f"{_DRN}.drn"] = stub, module


def _stand_in_for_multimodal() -> None:
    if importlib.util.find_spec("timm") is None:
        sys.modules.setdefault(_MULTIMODAL, types.ModuleType(_MULTIMODAL))


@functools.cache
def import_mmaction() -> Any:
    """Import mmaction2's models (seconds, once) and return its registry of models.

    Raises:
        UserError: mmaction2 or one of its requirements cannot be imported.
    """
    _import_opencv()
    try:
        _stand_in_for_drn()
        _stand_in_for_multimodal()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optional parts of mmcv and old syntax: not ours
            import mmaction.models  # noqa: F401
            from mmaction.registry import MODELS
            from mmengine.logging import MMLogger
    except (ImportError, AssertionError) as error:
        raise UserError(
            f"mmaction2 cannot be imported ({error}); expected mmaction2 1.2.0 with mmcv-lite "
            "2.1.0 and importlib_metadata: run `make setup`"
        ) from error
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # else a line per parameter
    return MODELS


def build_model(config: dict[str, Any]) -> Any:
    """The mmaction2 model that `config` describes, parts that mmengine would look up included."""
    models = import_mmaction()
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmaction"):
        return models.build(config)
