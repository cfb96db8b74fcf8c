"""Clips -> feature maps "B C T H W": frozen backbones, weights files, decode processes, the runner.

Names are loaded on first use: decode processes import this package and must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME_OF = {
    "Backbone": "backbones",
    "build_backbone": "build",
    "build_recognizer": "build",
    "extract_features": "runner",
    "load_classifier": "weights",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
