"""mmengine's checkpoints under torch's restricted unpickler.

Since torch 2.6 `torch.load` refuses what mmengine 0.10.7 writes beside the weights: its log. These
names and no others are let in, so that mmaction2's tools can load what they saved. A `getattr` in
such a file is a function that finds the four methods of the log and nothing else.
"""

from __future__ import annotations

import codecs
import pickle
from typing import Any

import numpy as np
import torch

_METHODS = ("min", "max", "current", "mean")
_NUMPY_DTYPES = ("Float64", "Float32", "Int64", "Int32", "Bool")


def _method_of_log(owner: Any, name: str) -> Any:
    """What a file's `getattr(HistoryBuffer, name)` becomes."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in _METHODS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f"the checkpoint asks for {name} of {owner!r}; only the log's own methods are let in"
    )


def allow_checkpoints() -> None:
    """Let `torch.load` read the log of a training by mmengine, from now on in this process."""
    from mmengine.logging import HistoryBuffer

    core: Any = np._core.multiarray  # type: ignore[attr-defined]
    names: list[Any] = [HistoryBuffer, np.ndarray, np.dtype]
    names += [getattr(np.dtypes, f"{name}DType") for name in _NUMPY_DTYPES]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names += [(core.scalar, f"{module}.scalar")]
        names += [(core._reconstruct, f"{module}._reconstruct")]
    names += [(codecs.encode, "_codecs.encode"), (_method_of_log, "builtins.getattr")]
    torch.serialization.add_safe_globals(names)
