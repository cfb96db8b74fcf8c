"""Clips -> feature maps, shard by shard: decode processes ahead, one forward pass, one writer.

Enters: a clip index, a frozen backbone, a writer of shards. Leaves: shards in the store, and a
summary with every clip that could not be decoded.

The same store comes out whatever the number of decode processes, of extractions that share it, and
wherever one was stopped: a shard is done wholly or again from its start, its batches are cut at the
same places, and a clip that fails leaves its place in the batch empty instead of moving its
neighbours up.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.progress import Track, track
from dsts_pipeline.clips.decode import Decoder, name_decoder
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.decode_process import Decoded, DecodeJob

_NUM_LISTED = 3
_MAX_CLAIMED = 3  # more would leave less to other processes, and more to lose when one is stopped
_SIGTERM_STATUS = 128 + signal.SIGTERM


class ShardWriter(Protocol):
    """What the runner asks of a store's writer; positions count the index's clips."""

    def pending_shards(self) -> list[int]: ...
    def claim(self, *, wait: bool = True) -> int | None: ...
    def shard_clips(self, shard: int) -> range: ...
    def write_shard(
        self, shard: int, maps: np.ndarray, failures: Mapping[int, str] | None = None
    ) -> None: ...
    def flush(self) -> None: ...
    def failures(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class ClipFailure:
    """A clip without a map, and why."""

    clip_id: str
    reason: str


@dataclass(frozen=True)
class ExtractionSummary:
    """What one run did: clips looked at, those that failed, and where the time went."""

    num_clips: int
    failures: tuple[ClipFailure, ...]
    seconds: float
    forward_seconds: float
    decode_wait_seconds: float


def describe_extraction(
    index: ClipIndex, backbone: Backbone, *, decoder: Decoder
) -> dict[str, Any]:
    """All but the storage format that decides a store's bytes, for its fingerprint.

    Choice: batch size and number of threads are left out. They can change the last bit of a
    float32, as another processor can, and a store should outlive a change of either.
    """
    return {
        "clips": {"dataset": index.dataset, "digest": index.digest},
        "backbone": backbone.describe(),
        "decoder": name_decoder(decoder),
    }


def check_failures(
    failures: Sequence[ClipFailure], num_clips: int, *, max_failed_fraction: float
) -> None:
    """Fail if more than `max_failed_fraction` of `num_clips` clips have no map.

    Raises:
        DataError: Naming the first few clips with their reasons.
    """
    allowed = math.floor(max_failed_fraction * num_clips + 1e-9)
    if len(failures) <= allowed:
        return
    listed = "; ".join(f"{f.clip_id}: {f.reason}" for f in failures[:_NUM_LISTED])
    more = "; ..." if len(failures) > _NUM_LISTED else ""
    raise DataError(
        f"{len(failures)} of {num_clips} clips have no map, {allowed} are allowed by "
        f"backbone.max_failed_fraction = {max_failed_fraction:g} ({listed}{more}). Replace these "
        "files and run `python cli.py prepare`, or raise the setting"
    )


def extract_features(
    index: ClipIndex,
    backbone: Backbone,
    writer: ShardWriter,
    *,
    decoder: Decoder = "decord",
    num_decode_workers: int = 1,
    batch_size: int = 32,
    max_failed_fraction: float = 0.01,
    clip_timeout_seconds: float = 60.0,
) -> ExtractionSummary:
    """Write every pending shard of the store; afterwards `writer.finish` may be called.

    Ctrl-C, SIGTERM or a kill lose the shards in work at most; the next run starts there. Shards
    that another extraction holds are left to it; if it dies, they are taken over.

    Args:
        index: The clips, in the order of the writer's plan.
        num_decode_workers: Decode processes; 0 decodes here, without a watchdog.
        batch_size: Clips per forward pass.
        max_failed_fraction: Clips without a map that are tolerated, of all in the index.
        clip_timeout_seconds: A clip that takes its decoder longer is failed.

    Raises:
        DataError: Too many clips cannot be decoded, or stored.
        StoreError: A shard cannot be written.
    """
    pending = writer.pending_shards()
    num_pending = sum(len(writer.shard_clips(shard)) for shard in pending)
    run = _Run(index, backbone, batch_size, max_failed_fraction)
    shards = _Shards(writer, lambda p: plan_job(index, index.clips[p], backbone, decoder))
    started = time.monotonic()
    with (
        _exit_on_sigterm(),
        DecodePool(num_decode_workers, clip_timeout_seconds=clip_timeout_seconds) as pool,
        track(f"extract {backbone.name}", num_pending) as progress,
        torch.inference_mode(),
    ):
        results = pool.run(shards.plan_jobs())
        # The first answer of a shard, because asking for it is what claims the shard.
        while (first := next(results, None)) is not None:
            shard = shards.claimed[0]
            answers = chain([first], results)
            maps, failures = run.extract_shard(writer.shard_clips(shard), answers, progress)
            writer.write_shard(shard, maps, failures)
            shards.claimed.popleft()
            run.check(writer.failures())
        writer.flush()
    return ExtractionSummary(
        num_clips=run.num_clips,
        failures=tuple(run.failures),
        seconds=time.monotonic() - started,
        forward_seconds=run.forward_seconds,
        decode_wait_seconds=run.decode_wait_seconds,
    )


class _Shards:
    """The shards of this run, claimed as decoding gets to them.

    Attributes:
        claimed: Numbers of those that are not handed in yet, in order: the one in work, and those
            that the decode processes look ahead to, `_MAX_CLAIMED` at most.
    """

    def __init__(self, writer: ShardWriter, plan_clip: Callable[[int], DecodeJob]) -> None:
        self._writer, self._plan_clip = writer, plan_clip
        self.claimed: deque[int] = deque()

    def plan_jobs(self) -> Iterator[DecodeJob | None]:
        """A job for every clip of every shard of this run; None: not now, write what is claimed.

        Waits for other processes only with empty hands, or two could wait for each other.
        """
        while True:
            if len(self.claimed) >= _MAX_CLAIMED:
                yield None
                continue
            shard = self._writer.claim(wait=not self.claimed)
            if shard is not None:
                self.claimed.append(shard)
                yield from map(self._plan_clip, self._writer.shard_clips(shard))
            elif self.claimed:
                yield None
            else:
                return


def frames_used(clip: Clip, num_frames: int) -> np.ndarray:
    """Numbers of the frames (int64 `[num_frames]`, in the file's count) that a clip's map shows."""
    return clip.start_frame + uniform_frames(clip.end_frame - clip.start_frame, num_frames)


def plan_job(index: ClipIndex, clip: Clip, backbone: Backbone, decoder: Decoder) -> DecodeJob:
    """What a decode process is told about one clip."""
    return DecodeJob(
        path=str(Path(index.root) / clip.path),
        indices=tuple(frames_used(clip, backbone.num_frames).tolist()),
        decoder=decoder,
        size_px=backbone.size_px,
        size_bytes=clip.size_bytes,
        sha256=clip.sha256,
    )


class _Run:
    """The state of one extraction: failures so far and where time went."""

    def __init__(
        self, index: ClipIndex, backbone: Backbone, batch_size: int, max_failed_fraction: float
    ) -> None:
        self._index, self._backbone, self._batch_size = index, backbone, batch_size
        self._max_failed_fraction = max_failed_fraction
        self.failures: list[ClipFailure] = []
        self.num_clips = 0
        self.forward_seconds = self.decode_wait_seconds = 0.0

    def extract_shard(
        self, positions: range, results: Iterator[Decoded], progress: Track
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Maps float32 [n, C, T, H, W] of a shard's clips, and the reasons of those that failed."""
        maps = np.zeros((len(positions), *self._backbone.map_shape), np.float32)
        failures: dict[int, str] = {}
        for start in range(0, len(positions), self._batch_size):
            batch = positions[start : start + self._batch_size]
            frames = self._collect(batch, results, failures)
            maps[start : start + len(batch)] = self._forward(frames)
            self.num_clips += len(batch)
            progress.advance(len(batch), note=f"{len(self.failures)} failed")
        return maps, failures

    def check(self, stored: Sequence[Mapping[str, Any]]) -> None:
        """Stop if too many clips failed; `stored` may know of some whose maps were refused."""
        failures = [ClipFailure(failure["id"], failure["reason"]) for failure in stored]
        for known in (failures, self.failures):
            check_failures(
                known, len(self._index.clips), max_failed_fraction=self._max_failed_fraction
            )

    def _collect(
        self, batch: range, results: Iterator[Decoded], failures: dict[int, str]
    ) -> np.ndarray:
        size = self._backbone.size_px
        frames = np.zeros((len(batch), self._backbone.num_frames, size, size, 3), np.uint8)
        started = time.monotonic()
        for row, position in enumerate(batch):
            decoded = next(results)
            if decoded.frames is not None:
                frames[row] = decoded.frames
                continue
            failures[position] = decoded.reason
            self.failures.append(ClipFailure(self._index.clips[position].id, decoded.reason))
        self.decode_wait_seconds += time.monotonic() - started
        self.check([])
        return frames

    def _forward(self, frames: np.ndarray) -> np.ndarray:
        started = time.monotonic()
        maps = self._backbone(torch.from_numpy(frames).to(self._backbone.device)).cpu().numpy()
        self.forward_seconds += time.monotonic() - started
        return maps


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that decode processes are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(_SIGTERM_STATUS)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
