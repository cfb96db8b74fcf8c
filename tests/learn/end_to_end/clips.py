"""Real clips whose classes a tiny model can tell apart, and feeds of their frames."""

from __future__ import annotations

from pathlib import Path

import torch

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.augmentation import Augmentation
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.views import ViewPlan, Views
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn.end_to_end import EndToEnd
from dsts_pipeline.learn.videos import VideoFeed
from tests.clips.videos import write_video
from tests.learn.end_to_end.tiny import CHANNELS, CLASSES, FRAMES, SIZE, new_backbone

NUM_CLIPS = 26


class Input:
    """What the tiny backbone is fed."""

    num_frames, size_px = FRAMES, SIZE


def index_of(root: Path, num_clips: int = NUM_CLIPS) -> ClipIndex:
    """Clips of four lengths, one per class (their grey follows the frame number); two of test."""
    clips = []
    for number in range(num_clips):
        path, length = root / f"clip{number}.mp4", 4 + 5 * (number % CLASSES)
        if not path.exists():
            write_video(path, num_frames=length, size=(32, 32), seed=number)
        clips.append(
            Clip(
                id=path.stem,
                path=path.name,
                label=number % CLASSES,
                split="test" if number >= num_clips - 2 else "train",
                num_frames=length,
                start_frame=0,
                end_frame=length,
                size_bytes=path.stat().st_size,
                sha256=sha256_file(path),
            )
        )
    names = tuple(f"class{k}" for k in range(CLASSES))
    return ClipIndex("lengths", str(root), names, (), (), tuple(clips))


def feed_of(index: ClipIndex, pool: DecodePool, crop: str = "multi_scale", **options) -> VideoFeed:
    views = Views(augmentation=Augmentation(crop=crop), seed=4)
    return VideoFeed(ViewPlan(index, Input(), views, "pyav"), "train", pool, **options)


def float_model(**options) -> EndToEnd:
    """In float32, as commands train."""
    backbone = new_backbone().float()
    torch.manual_seed(2)
    head = {"num_neurons": 2, "num_layers": 1, "width": 4, "impulse": "standardized"}
    head |= {"routing_gradient": "selected", "layer_residual": True}
    return EndToEnd(backbone, DSTSHead.paper(CHANNELS, CLASSES, **head), **options)
