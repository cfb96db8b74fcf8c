"""Weights files -> tensors by name, without running anything that is in the file.

Enters: a safetensors file, or what `torch.save` wrote. Leaves: a flat dict of tensors.

safetensors hold arrays only. A pickle is read by torch's restricted unpickler, which knows tensors
and plain containers and refuses every other name. OpenMMLab's files hold the log of their training
as well; exactly those names are let in, each bound to a class that does nothing (`getattr` too:
what the file calls is that class), so that neither mmengine's, numpy's nor Python's code runs.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError

# Where a checkpoint of several parts keeps the weights.
_STATE_NAMES = ("state_dict", "model_state_dict", "model", "module")
_NUM_NUMPY_DTYPES = ("Float64", "Float32", "Float16", "Int64", "Int32", "UInt8", "Bool")


class _Inert:
    """Takes the place of an allowed object: accepts what it is given and drops it."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


ALLOWED_NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")  # the same module before and since numpy 2
        for name in ("scalar", "_reconstruct")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{name}DType" for name in _NUM_NUMPY_DTYPES),
    "_codecs.encode",  # how pickle protocol 2 writes the bytes of a number
    "builtins.getattr",  # how it writes the functions that a HistoryBuffer holds
)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weights file by name; float16 and bfloat16 are widened to float32.

    Raises:
        CheckpointError: The file is missing, damaged, no weights file, or wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file; give backbone.weights an existing .safetensors or "
            ".pth file, or make one with `python cli.py pretrain`"
        )
    state = _read_pickle(path) if _is_pickle(path) else _read_safetensors(path)
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def _is_pickle(path: Path) -> bool:
    """A zip archive (torch >= 1.6), or a bare pickle (before): by content, names can lie."""
    with path.open("rb") as file:
        start = file.read(2)
    return zipfile.is_zipfile(path) or start[:1] == b"\x80" or start == b"PK"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a sound safetensors file ({error}); replace it by a sound copy"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    allowed: list[Any] = [(_Inert, name) for name in ALLOWED_NAMES]
    try:
        with _allowing_only(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_tell_refusal(path, str(error))) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a sound checkpoint ({str(error).splitlines()[0]}); "
            "replace it by a sound copy"
        ) from None
    return _find_state(path, content)


@contextmanager
def _allowing_only(names: list[Any]) -> Iterator[None]:
    """What this process has allowed besides, as mmaction2's tools do, counts for nothing."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(names):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _tell_refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    culprit = f"it names {named.group(1)}" if named else "it is no plain checkpoint"
    return (
        f"{path}: refused, {culprit}, and only tensors and the training log of OpenMMLab are read; "
        "nothing of the file was run. Take the weights from a source that you trust and save them "
        "as safetensors"
    )


def _find_state(path: Path, content: Any) -> dict[str, Tensor]:
    """The dict of tensors in what was unpickled."""
    if isinstance(content, Mapping):
        for name in _STATE_NAMES:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__} without weights, expected tensors by name, "
            f"possibly below one of {', '.join(_STATE_NAMES)}"
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: {len(others)} entries of its weights are no tensors "
            f"({', '.join(others[:4])}); expected tensors by name"
        )
    return {str(name): value.detach() for name, value in content.items()}
