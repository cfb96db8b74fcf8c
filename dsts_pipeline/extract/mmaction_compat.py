"""The one door to mmaction2 1.2.0: its import traps are handled here and nowhere else.

Enters: a model configuration, or the name of one in its model zoo. Leaves: the model, built by
mmaction2's registry; the configuration as plain dicts and lists.

Eight traps:
1. The wheel lacks `mmaction/models/localizers/drn`, which its own package imports
   (mmaction2 issue 2714): an empty stand-in takes its place.
2. It imports `importlib_metadata` without declaring it: our requirements name it.
3. It refuses mmcv >= 2.2: our requirements pin mmcv-lite 2.1.0.
4. It imports OpenCV, whose wheels need libGL, libX11 and libglib of the system, which a bare
   machine lacks. Recognizers never call OpenCV, so a stand-in takes its place there; it says so
   as soon as somebody calls it.
5. Where transformers is installed, it imports its multimodal models, too, which need timm and names
   that transformers 5 dropped. No recognizer of videos uses them: a stand-in takes their place.
6. Its configs name weights of other models to start from, and mmengine downloads them unasked while
   a model is built or initialised: `strip_downloads` takes these names out.
7. mmengine finds the base configs of other packages (`_base_ = "mmaction::..."`) by pkg_resources,
   which newer setuptools dropped: where it is missing, the import system is asked instead.
8. It asks for decord, which has no wheel for some machines: pip installs it there only without what
   it asks for.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import platform
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import MissingExtraError, UserError, missing_extra
from dsts_pipeline.extract.pipelines import load_opencv

_DRN = "mmaction.models.localizers.drn"
_MULTIMODAL = "mmaction.models.multimodal"
_WITH_DECORD = ("x86_64", "AMD64")  # machines that decord has wheels for


class _Absent:
    """What the OpenCV stand-in holds under every name; calling it explains itself."""

    def __init__(self, name: str, reason: str) -> None:
        self._name = name
        self._reason = reason

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
    try:
        load_opencv()
    except ImportError as error:
        sys.modules["cv2"] = _OpenCvStandIn(str(error))


def import_yapf_alone() -> None:
    """Import yapf, which mmengine imports to print configs, with a cache of this process's own.

    It keeps a pickle of its grammar in the user's cache, written in place: of two processes that
    start on a new machine one finds half of it and ends with an EOFError, and one that was killed
    leaves half for ever.
    """
    if "yapf" in sys.modules:
        return
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            importlib.import_module("yapf")
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def _stand_in_for_drn() -> None:
    inside = Path("models", "localizers", "drn")
    if any((Path(folder) / inside).is_dir() for folder in _find_mmaction()):
        return
    module = types.ModuleType(f"{_DRN}.drn")
    module.DRN = type("DRN", (), {})  # type: ignore[attr-defined]
    sys.modules[_DRN] = types.ModuleType(_DRN)
    sys.modules[module.__name__] = module


def _find_packages_without_pkg_resources() -> None:
    if importlib.util.find_spec("pkg_resources") is not None:
        return
    from mmengine.config import config
    from mmengine.config.utils import MODULE2PACKAGE

    modules = {package: module for module, package in MODULE2PACKAGE.items()}

    def find(package: str) -> str | None:
        spec = importlib.util.find_spec(modules.get(package, package))
        return os.path.dirname(spec.origin) if spec and spec.origin else None

    config.is_installed = lambda package: find(package) is not None
    config.get_installed_path = find


@functools.cache
def import_mmaction() -> Any:
    """Import mmaction2's models (seconds, once) and return its registry of models.

    Raises:
        UserError: mmaction2 or one of its requirements cannot be imported.
    """
    for name in ("mmengine", "mmcv", "importlib_metadata", "einops"):
        if importlib.util.find_spec(name) is None:
            raise missing_extra(name, "a model of mmaction2")
    _find_mmaction()
    _import_opencv()
    try:
        import_yapf_alone()
        _stand_in_for_drn()
        sys.modules.setdefault(_MULTIMODAL, types.ModuleType(_MULTIMODAL))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optional parts of mmcv and old syntax: not ours
            _find_packages_without_pkg_resources()
            import mmaction.models  # noqa: F401
            from mmaction.registry import MODELS
            from mmengine.logging import MMLogger
    except (ImportError, AssertionError) as error:
        raise UserError(
            f"mmaction2 cannot be imported ({error}); expected mmaction2 1.2.0 with mmcv-lite "
            'below 2.2: pip install "dsts-pipeline[mmaction2]"'
        ) from error
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # else a line per parameter
    return MODELS


def _find_mmaction() -> list[str]:
    """The folders of the package.

    Raises:
        MissingExtraError: It is not installed.
    """
    package = importlib.util.find_spec("mmaction")
    if package is not None:
        return list(package.submodule_search_locations or [])
    if platform.machine() not in _WITH_DECORD:
        raise MissingExtraError(
            "a model of mmaction2 needs mmaction, which is not installed: pip install --no-deps "
            "mmaction2==1.2.0 (it asks for decord, which has no wheel for this machine)"
        )
    raise missing_extra("mmaction", "a model of mmaction2")


def zoo_folder() -> Path:
    """The folder of recognition configs that mmaction2's wheel ships.

    Raises:
        UserError: mmaction2 is not installed, or without its configs.
    """
    for folder in _find_mmaction():
        configs = Path(folder) / ".mim" / "configs" / "recognition"
        if configs.is_dir():
            return configs
    raise UserError(
        "mmaction2's model-zoo configs are not installed; expected mmaction/.mim/configs of the "
        "wheel mmaction2 1.2.0: install that one, or give backbone.name the path of a config file"
    )


def read_config(path: Path) -> dict[str, Any]:
    """An mmengine config file, bases merged in, as plain dicts, lists and tuples.

    A `.py` config is a program: reading it runs it. Only read those that you would run.
    """
    import_mmaction()
    from mmengine.config import Config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old syntax in mmengine
        config = Config.fromfile(str(path), import_custom_modules=False).to_dict()
    return _without_scopes(config)


def _without_scopes(value: Any) -> Any:
    """Without the mark that mmengine leaves on what comes from another package's config."""
    if isinstance(value, dict):
        return {k: _without_scopes(v) for k, v in value.items() if k != "_scope_"}
    if isinstance(value, list | tuple):
        return type(value)(_without_scopes(item) for item in value)
    return value


def strip_downloads(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a model config that names no weights, so that building it fetches nothing."""
    stripped: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("pretrained", "pretrained_type"):
            value = None
        elif key == "init_cfg" and "Pretrained" in str(value):
            continue
        stripped[key] = strip_downloads(value) if isinstance(value, dict) else value
    for switch in ("pretrained2d", "clip_pretrained"):  # on unless they are switched off
        if accepts(config.get("type"), switch):
            stripped[switch] = False
    return stripped


def accepts(kind: Any, option: str) -> bool:
    """Whether the registered class called `kind` has an argument called `option`."""
    registered = import_mmaction().get(kind) if isinstance(kind, str) else None
    if not inspect.isclass(registered):
        return False
    bases = registered.__mro__[:-1]  # arguments may be handed on to a base as **kwargs
    return any(option in inspect.signature(base).parameters for base in bases)


def build_model(config: dict[str, Any]) -> Any:
    """The mmaction2 model that `config` describes, parts that mmengine would look up included.

    Raises:
        UserError: A part is unknown, or needs a package that is not installed.
    """
    models = import_mmaction()
    from mmengine.registry import DefaultScope

    try:
        with DefaultScope.overwrite_default_scope("mmaction"):
            return models.build(config)
    except (ImportError, KeyError) as error:
        raise UserError(
            f"mmaction2 cannot build this model ({str(error).strip() or type(error).__name__}); "
            "what it needs (timm, mmpretrain, torchvision, mmcv's compiled operators) is not "
            "among the project's requirements: install it, or choose another backbone.name"
        ) from error
