"""A small set of real clips, a backbone that computes in no time, and a store of its maps.

Run as a program it extracts that store and prints a line per shard, for tests that kill it.
Arguments: the clips, the folder of stores; clips per shard and decode processes, if not the usual.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.progress import ExtractionSummary
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StorePlan, StoreWriter
from tests.clips.videos import write_video

NUM_CLIPS = 22
SAMPLES_PER_SHARD = 4


class PoolingBackbone:
    """Average colours of a 2 x 2 grid over pairs of frames: map [3, 4, 2, 2]."""

    name, num_frames, size_px, map_shape = "pooling", 8, 32, (3, 4, 2, 2)
    device = torch.device("cpu")

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = frames.permute(0, 4, 1, 2, 3).float()
        return torch.nn.functional.adaptive_avg_pool3d(pixels, self.map_shape[1:])


def write_clips(root: Path, num_clips: int = NUM_CLIPS) -> None:
    """Different videos clip0.mp4, clip1.mp4, ... of different lengths."""
    for number in range(num_clips):
        write_video(root / f"clip{number}.mp4", num_frames=10 + number % 5, seed=number)


def index_clips(root: Path) -> ClipIndex:
    """The index of all of them, whatever their content."""
    paths = sorted(root.glob("clip*.mp4"), key=lambda path: int(path.stem[4:]))
    clips = [
        Clip(
            id=path.stem,
            path=path.name,
            label=number % 2,
            split="test" if number % 3 == 2 else "train",
            num_frames=10 + number % 5,
            start_frame=number % 2,
            end_frame=10 + number % 5,
            size_bytes=path.stat().st_size,
            sha256=sha256_file(path),
        )
        for number, path in enumerate(paths)
    ]
    return ClipIndex("small", str(root), ("a", "b"), (), (), tuple(clips))


def plan_store(index: ClipIndex, samples_per_shard: int = SAMPLES_PER_SHARD) -> StorePlan:
    return StorePlan(
        fingerprint_parts={"digest": index.digest},
        clips=[(clip.id, clip.label, clip.split) for clip in index.clips],
        class_names=index.class_names,
        map_shape=PoolingBackbone.map_shape,
        samples_per_shard=samples_per_shard,
    )


def extract_store(
    root: Path,
    index: ClipIndex,
    *,
    backbone: PoolingBackbone | None = None,
    decode=decode_clip,
    **settings,
) -> tuple[Path, ExtractionSummary]:
    """Extract what is pending and finish; the store's path and the summary."""
    backbone = backbone or PoolingBackbone()
    with StoreWriter(root, plan_store(index)) as writer:
        chosen = BackboneSettings(**settings)
        plan = ViewPlan(index, backbone)
        summary = extract_features(plan, backbone, writer, chosen, decode=decode)
        return writer.finish({}).parent, summary


class TalkingWriter(StoreWriter):
    """Says when a shard is done, and waits a little for somebody to interfere."""

    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None:
        super().write_shard(shard, maps, failures)
        self.flush()
        print("shard", shard, flush=True)
        time.sleep(0.3 if self.plan.samples_per_shard > 1 else 0.1)


if __name__ == "__main__":
    small_index = index_clips(Path(sys.argv[1]))
    per_shard, num_processes = map(int, sys.argv[3:] or (SAMPLES_PER_SHARD, 1))
    with TalkingWriter(sys.argv[2], plan_store(small_index, per_shard)) as talking_writer:
        extract_features(
            ViewPlan(small_index, PoolingBackbone()),
            PoolingBackbone(),  # type: ignore[arg-type]
            talking_writer,
            BackboneSettings(batch_size=2, num_decode_workers=num_processes),
        )
        talking_writer.finish({})
