"""Errors that a user can act on: what was found, what was expected, what to do.

The command line prints the message of a `UserError` without a traceback and exits with its
`exit_status`; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

# What is not in the base install: package as it is imported, and the extra that brings it
# (pyproject.toml; tests/test_install.py compares).
EXTRA_OF = {
    "PIL": "pipeline",
    "aiohttp": "remote",
    "altair": "pipeline",
    "av": "pipeline",
    "decord": "decord",
    "dvc": "pipeline",
    "dvclive": "pipeline",
    "efficientnet_lite_pytorch": "lite",
    "einops": "mmaction2",
    "fastapi": "app",
    "fsspec": "remote",
    "h5py": "pipeline",
    "huggingface_hub": "hub",
    "hydra": "pipeline",
    "importlib_metadata": "mmaction2",
    "jinja2": "pipeline",
    "lightning_fabric": "pipeline",
    "markupsafe": "pipeline",
    "mlflow": "mlflow",
    "mmaction": "mmaction2",
    "mmcv": "mmaction2",
    "mmengine": "mmaction2",
    "omegaconf": "pipeline",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "optuna": "search",
    "ray": "ray",
    "s3fs": "remote",
    "scipy": "pipeline",
    "starlette": "app",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "torchcodec": "torchcodec",
    "torchvision": "timm",
    "transformers": "transformers",
    "uvicorn": "app",
    "vl_convert": "pipeline",
    "wandb": "wandb",
}


class UserError(Exception):
    """A problem in the input, the settings or the machine, told in one or two lines."""

    exit_status = 2


class SettingsError(UserError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(UserError):
    """A data root, an annotation file or a video is missing, damaged or inconsistent."""


class StoreError(UserError):
    """A feature store is unfinished, damaged or belongs to other settings."""


class CheckpointError(UserError):
    """Saved weights do not fit the model or the settings that they are loaded into."""


class BundleError(UserError):
    """A bundle is damaged, of another version, or its parts do not belong together."""


class ExportError(UserError):
    """A model cannot be exported, or what was exported does not say what PyTorch says."""


class BusyError(UserError):
    """Another process is writing what this one would write."""


class MissingExtraError(UserError):
    """A package of an extra is not installed: the message has the command that brings it."""


def missing_extra(package: str, purpose: str, extra: str | None = None) -> MissingExtraError:
    """The error that says what `purpose` lacks, such as `missing_extra("optuna", "search")`.

    The command is the same for a wheel and for a checkout, where it takes the tested versions.

    Args:
        package: As it is imported.
        extra: Where it is not the one of `EXTRA_OF`.
    """
    pinned = "-c constraints.txt " if Path("constraints.txt").is_file() else ""
    command = f'pip install {pinned}"dsts-pipeline[{extra or EXTRA_OF[package]}]"'
    return MissingExtraError(f"{purpose} needs {package}, which is not installed: {command}")


def import_extra(module: str, purpose: str) -> Any:
    """The module called `module`, of a package that the base install doesn't have.

    Raises:
        MissingExtraError: It is not installed, or something that it imports is not.
        UserError: It is installed and broken.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise explain_missing(error, purpose, EXTRA_OF[module.partition(".")[0]]) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"{purpose} needs {module}, which cannot be imported: {tell_briefly(error)}"
        ) from None


def explain_missing(
    error: ModuleNotFoundError, purpose: str, extra: str | None = None
) -> Exception:
    """`missing_extra` of a failed import; the error itself where no extra has that package."""
    package = (error.name or "").partition(".")[0]
    known = extra or EXTRA_OF.get(package)
    return missing_extra(package, purpose, known) if package and known else error


class LazyExtra:
    """Stands for a module of an extra, which is imported when it is first used.

    Example:
        if TYPE_CHECKING: import h5py
        else: h5py = LazyExtra("h5py", "an HDF5 file")
    """

    def __init__(self, module: str, purpose: str) -> None:
        self._module = module
        self._purpose = purpose

    def __getattr__(self, name: str) -> Any:
        return getattr(import_extra(self._module, self._purpose), name)


def tell_briefly(error: BaseException) -> str:
    """Type and message of an error that nobody foresaw, in one line, such as "KeyError: 'pts'"."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}".rstrip(": ")


def tell_trace(error: BaseException) -> str:
    """Where it happened, in one line for a log that goes on: the innermost call first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
