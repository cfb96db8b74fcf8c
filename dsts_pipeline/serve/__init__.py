"""Trained head -> answers: the bundle that holds all an answer needs, predictions, the local page.

Enters: what a run made. Leaves: a folder that can be taken elsewhere, and what it says of videos.
Names are loaded on first use: decode processes import this package and must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsts_pipeline.serve.bundle import BackboneSource, Bundle, bundle_of_run
    from dsts_pipeline.serve.bundle_folder import load_bundle, save_bundle
    from dsts_pipeline.serve.hub import from_hub
    from dsts_pipeline.serve.predictor import Prediction, Predictor, Refusal

_HOME_OF = {
    "BackboneSource": "bundle",
    "Bundle": "bundle",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Refusal": "predictor",
    "bundle_of_run": "bundle",
    "from_hub": "hub",
    "load_bundle": "bundle_folder",
    "save_bundle": "bundle_folder",
}
__all__ = [
    "BackboneSource",
    "Bundle",
    "Prediction",
    "Predictor",
    "Refusal",
    "bundle_of_run",
    "from_hub",
    "load_bundle",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
