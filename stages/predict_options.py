"""How videos are decoded and computed for an answer; what decides the answer is in the bundle."""

from __future__ import annotations

from typing import Any

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.devices import choose_device


def predictor_options(settings: Settings) -> dict[str, Any]:
    """Keywords of `Predictor`."""
    chosen = settings.backbone
    names = {"num_decode_workers", "clip_timeout_seconds", "prefetch_bytes", "batch_size"}
    fallback = None if chosen.decoder_fallback == "none" else chosen.decoder_fallback
    return chosen.model_dump(include=names) | {
        "device": choose_device(chosen.device),
        "decoder_fallback": fallback,
    }
