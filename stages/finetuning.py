"""What `finetune` and `pretrain-backbone` work with: processes, clips, backbone, decoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.frames.augmentation import Augmentation, import_transforms
from dsts_pipeline.extract.frames.decode_pool import DecodePool
from dsts_pipeline.extract.frames.views import ViewPlan, Views
from dsts_pipeline.extract.models.backbones import Backbone, build_backbone
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    hold_together,
    joined_processes,
    stop_on_sigterm,
)
from dsts_pipeline.learn.end_to_end.saving import check_can_be_saved
from stages import places

_CHOICE = {"name", "weights", "weights_sha256", "key_map", "taps", "num_frames", "size_px"}


@dataclass
class Work:
    """What a fine-tuning is made with."""

    settings: Settings
    processes: Processes
    saved: CheckpointOptions
    clips: ClipIndex
    backbone: Backbone
    pool: DecodePool

    def plan(self, views: Views) -> ViewPlan:
        """How clips are decoded for `views`."""
        chosen = self.settings.backbone
        fallback = None if chosen.decoder_fallback == "none" else chosen.decoder_fallback
        return ViewPlan(self.clips, self.backbone, views, chosen.decoder, fallback)


@contextmanager
def open_work(settings: Settings, folder: Path, name: str) -> Iterator[Work]:
    """Join processes, heed SIGTERM, load clips and backbone, start decoders.

    Args:
        folder: Where the results go; other processes are kept out of it meanwhile.
        name: The command's, told to them.

    Raises:
        BusyError: Another process is at work on that folder.
        CheckpointError, DataError, SettingsError: No clip index, no sound weights, or the backbone
            can't be trained here.
    """
    chosen, decoding, index = (
        settings.finetune,
        settings.backbone,
        ClipIndex.load(places.CLIP_INDEX),
    )
    backbone = build_backbone(**decoding.model_dump(include=_CHOICE))
    check_can_be_saved(backbone)
    augmented = Augmentation(**chosen.augmentation.model_dump()).is_on
    warm_up = import_transforms if augmented else None
    limits = decoding.model_dump(include={"clip_timeout_seconds", "prefetch_bytes"})
    with (
        joined_processes(chosen.device, chosen.devices) as processes,
        hold_together(processes, folder, name),
        stop_on_sigterm(chosen.requeue_status) as stop,
        DecodePool(decoding.num_decode_workers, **limits, warm_up=warm_up) as pool,
    ):
        every = chosen.checkpoint_every_batches
        saved = CheckpointOptions(places.CHECKPOINTS, every_batches=every, stop=stop)
        yield Work(settings, processes, saved, index, backbone, pool)
