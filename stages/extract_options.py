"""How clips are decoded and computed, and in which views, as the settings say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.frames.augmentation import Augmentation
from dsts_pipeline.extract.frames.views import ClipInput, ViewPlan, Views


def plan_views(settings: Settings, index: ClipIndex, backbone: ClipInput) -> ViewPlan:
    """The rows of the store of `index`, and what decode processes are told about them."""
    options = extraction_options(settings)
    return ViewPlan(
        index, backbone, options["views"], options["decoder"], options["decoder_fallback"]
    )


def choose_views(settings: Settings) -> Views:
    """How many maps a clip has, and how those of training clips are changed.

    Raises:
        SettingsError: Views are to be mirrored and a mirrored clip has no class.
    """
    views, dataset = settings.backbone.views, settings.dataset
    return Views(
        **views.model_dump(exclude={"augmentation"}),
        augmentation=Augmentation(**views.augmentation.model_dump()),
        flips=FlipRule(dataset.flip, dataset.flip_pairs),
    )


def choose_computing(settings: Settings) -> Computing:
    """How the backbone is run."""
    chosen = settings.backbone
    return Computing(chosen.batch_size, chosen.precision, chosen.compile, chosen.channels_last)


def extraction_options(settings: Settings) -> dict[str, Any]:
    """Keywords of `extract_features`."""
    chosen = settings.backbone
    fallback = chosen.decoder_fallback
    return asdict(choose_computing(settings)) | {
        "views": choose_views(settings),
        "decoder": chosen.decoder,
        "decoder_fallback": None if fallback == "none" else fallback,
        "num_decode_workers": chosen.num_decode_workers,
        "clip_timeout_seconds": chosen.clip_timeout_seconds,
        "prefetch_bytes": chosen.prefetch_bytes,
        "max_failed_fraction": chosen.max_failed_fraction,
    }
