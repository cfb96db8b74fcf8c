"""What the settings ask extraction for: the backbone, its frames and views, how it is run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dsts_pipeline.base.settings.data import BackboneSettings, DatasetSettings
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.frames.augmentation import Augmentation
from dsts_pipeline.extract.frames.views import ClipInput, ViewPlan, Views
from dsts_pipeline.extract.models.backbones import Backbone, build_backbone

_CHOICE = {"name", "weights", "weights_sha256", "key_map", "taps", "num_frames", "size_px"}


def choose_backbone(chosen: BackboneSettings) -> Backbone:
    """The backbone, frozen, on the CPU.

    Raises:
        CheckpointError: There are no sound weights.
    """
    return build_backbone(**chosen.model_dump(include=_CHOICE))


def choose_fallback(chosen: BackboneSettings) -> Decoder | None:
    """The decoder of files that the first one can't read; None for none."""
    return None if chosen.decoder_fallback == "none" else chosen.decoder_fallback


def choose_views(chosen: BackboneSettings, dataset: DatasetSettings) -> Views:
    """How many maps a clip has, and how those of training clips are changed.

    Raises:
        SettingsError: Views are to be mirrored and a mirrored clip has no class.
    """
    return Views(
        **chosen.views.model_dump(exclude={"augmentation"}),
        augmentation=Augmentation(**chosen.views.augmentation.model_dump()),
        flips=FlipRule(dataset.flip, dataset.flip_pairs),
    )


def choose_computing(chosen: BackboneSettings) -> Computing:
    """How the backbone is run."""
    return Computing(chosen.batch_size, chosen.precision, chosen.compile, chosen.channels_last)


def plan_views(
    index: ClipIndex, backbone: ClipInput, chosen: BackboneSettings, dataset: DatasetSettings
) -> ViewPlan:
    """The rows of the store of `index`, and what decode processes are told about them."""
    views = choose_views(chosen, dataset)
    return ViewPlan(index, backbone, views, chosen.decoder, choose_fallback(chosen))


def extraction_options(chosen: BackboneSettings, dataset: DatasetSettings) -> dict[str, Any]:
    """Keywords of `extract_features`."""
    return asdict(choose_computing(chosen)) | {
        "views": choose_views(chosen, dataset),
        "decoder": chosen.decoder,
        "decoder_fallback": choose_fallback(chosen),
        "num_decode_workers": chosen.num_decode_workers,
        "clip_timeout_seconds": chosen.clip_timeout_seconds,
        "prefetch_bytes": chosen.prefetch_bytes,
        "max_failed_fraction": chosen.max_failed_fraction,
    }
