"""Video files -> answers, by the same decoding, views and backbone that made the training's maps.

Enters: a `Bundle` and paths. Leaves, in the order of the paths, a `Prediction` for each video, or a
`Refusal` with the reason. Decoding happens in processes under a watchdog, several videos ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.probe import VideoInfo
from dsts_pipeline.extract.decode_pool import PREFETCH_BYTES, Decoded, DecodePool
from dsts_pipeline.extract.forward import ForwardPass
from dsts_pipeline.extract.num_decoders import NumWorkers
from dsts_pipeline.extract.views import FrameRequest, InputRule
from dsts_pipeline.feature_store.joining import join_maps
from dsts_pipeline.head import DSTSHead, attention_map, compile_head
from dsts_pipeline.head.inspection import temporal_shares
from dsts_pipeline.metrics import softmax
from dsts_pipeline.serve.annotate import AnnotateJob
from dsts_pipeline.serve.bundle import Bundle
from dsts_pipeline.serve.video_jobs import DecodedVideo, VideoJob, work

PARTS = ("decode", "transform", "backbone", "head")


@dataclass(frozen=True)
class Refusal:
    """A video without an answer, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the head says of one video.

    Attributes:
        logits: float32 [V, K], a row per view; the views of a joined map count as one, here and
            below.
        probabilities: float32 [K], the mean of the views'.
        neurons: Chosen neuron per view and layer [V, L]; None where there is no choice of several.
        frames: What the backbone saw, uint8 [V, T, H, W, C].
        pooled: The map's mean over time, space and views, float32 [C].
        seconds: By part, see `PARTS`; of videos that went through in one batch, their share.
        attention: What an attentive readout took of the first view's map, float32 [T, H, W], sums
            to 1; None where it averages, or was not asked for.
    """

    path: Path
    info: VideoInfo
    logits: np.ndarray
    probabilities: np.ndarray
    neurons: np.ndarray | None
    frames: np.ndarray = field(repr=False)
    pooled: np.ndarray = field(repr=False)
    seconds: dict[str, float]
    attention: np.ndarray | None = field(default=None, repr=False)

    def top(self, count: int = 5) -> list[tuple[int, float]]:
        """The most probable classes with their probabilities; ties go to the lower number."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(number), float(self.probabilities[number])) for number in order]


class Predictor:
    """Answers for videos, also from several threads at once.

    Args:
        device: Where backbone and head compute.
        num_decode_workers: Decode processes, at least 1: they are what a watchdog can end; "auto":
            more, where many videos show that the backbone waits for them.
        clip_timeout_seconds: A video that takes its decoder longer is refused (after a second try).
        batch_size: Views per forward pass, at most.
        decoder_fallback: Tried where the bundle's decoder fails; None: the bundle's own rule.
        with_attention: Answers tell what an attentive readout took, for one more pass of the head.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | None = None,
        num_decode_workers: NumWorkers = 1,
        clip_timeout_seconds: float = 60.0,
        prefetch_bytes: int = PREFETCH_BYTES,
        batch_size: int = 32,
        decoder_fallback: Decoder | None = None,
        with_attention: bool = False,
    ) -> None:
        self.bundle = bundle
        self._with_attention = with_attention
        self._batch_size = batch_size
        self._device = device or torch.device("cpu")
        self._backbone = bundle.backbone.to(self._device)
        self._head = bundle.head.to(self._device).eval()
        # A lone neuron serves every sample: there is nothing to tell.
        chooses = isinstance(self._head, DSTSHead) and self._head.options.num_neurons > 1
        self._routes = chooses and self._head.routes
        self._answering = self._head
        if isinstance(self._head, DSTSHead):
            self._answering = compile_head(self._head)  # the same logits in less time
        self._forward = ForwardPass(self._backbone, bundle.computing)
        self._fallback = bundle.decoder_fallback or decoder_fallback
        self._lock = threading.Lock()
        self._pool = DecodePool(
            num_decode_workers or 1,
            clip_timeout_seconds=clip_timeout_seconds,
            prefetch_bytes=prefetch_bytes,
            decode=work,
        )

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def temporal_shares(self) -> list[list[float] | None]:
        """Per layer and neuron, the share of channels that go to the temporal operator."""
        if not isinstance(self._head, DSTSHead):
            return []
        shares = [temporal_shares(layer) for layer in self._head.dsts_layers()]
        return [None if share is None else share.tolist() for share in shares]

    @property
    def num_neurons(self) -> int | None:
        """N, where samples are routed."""
        head = self._head
        if not isinstance(head, DSTSHead) or not self._routes:
            return None
        return next(head.dsts_layers()).num_neurons

    def predict(self, paths: Iterable[Path]) -> Iterator[Prediction | Refusal]:
        """An answer for each of `paths`, in their order, a batch at a time."""
        paths = list(paths)
        waiting: list[tuple[Path, Decoded]] = []
        num_views = 0
        for path, seen in zip(paths, self._pool.run(map(self._job, paths)), strict=True):
            waiting.append((path, seen))
            num_views += 0 if seen.frames is None else len(seen.frames)
            if num_views >= self._batch_size:
                yield from self._answer(waiting)
                waiting = []
                num_views = 0
                forward = self._forward
                self._pool.adapt(forward.seconds_per_clip, num_work_threads=forward.num_threads)
        yield from self._answer(waiting)

    def warm_up(self) -> None:
        """Let the backbone and the head see one empty clip, so that no video pays for the start."""
        backbone = self._backbone
        self._compute([np.zeros((self.bundle.num_joined, *backbone.input_shape), np.uint8)])

    def annotate(
        self,
        answer: Prediction,
        out: Path,
        bars: Sequence[tuple[str, float]],
        lines: Sequence[str],
    ) -> Prediction | Refusal:
        """Write an annotated copy of the video to `out`; `answer`, or why there is none."""
        job = AnnotateJob(
            str(answer.path), "pyav", out=str(out), bars=tuple(bars), lines=tuple(lines)
        )
        seen = next(self._pool.run([job]))
        if seen.frames is None:
            return Refusal(answer.path, f"it cannot be annotated: {seen.reason}")
        return answer

    def preview(self, requests: Sequence[FrameRequest]) -> list[np.ndarray | None]:
        """Frames uint8 [T, size, size, 3] of each request's first view, or None without any."""
        answers = self._pool.run(requests)
        return [None if seen.frames is None else seen.frames[0] for seen in answers]

    def _job(self, path: Path) -> VideoJob:
        return VideoJob(
            str(path),
            self.bundle.decoder,
            self._fallback,
            input=InputRule.of(self._backbone),
            views=self.bundle.views,
        )

    def _answer(self, waiting: list[tuple[Path, Decoded]]) -> Iterator[Prediction | Refusal]:
        frames = [video.frames for _, video in waiting if video.frames is not None]
        answers = iter(self._compute(frames))
        for path, video in waiting:
            if video.frames is None:
                yield Refusal(path, video.reason)
                continue
            assert isinstance(video, DecodedVideo) and video.info is not None
            answer = next(answers)
            own = {"decode": video.decode_seconds, "transform": video.transform_seconds}
            yield Prediction(
                path=path,
                info=video.info,
                logits=answer.logits,
                probabilities=softmax(answer.logits).mean(axis=0),
                neurons=answer.neurons,
                frames=self._join_frames(video.frames),
                pooled=answer.pooled,
                seconds=own | answer.seconds,
                attention=answer.attention,
            )

    def _compute(self, videos: Sequence[np.ndarray]) -> list[_Computed]:
        """What comes out for each video's frames, from one batch."""
        if not videos:
            return []
        frames = np.concatenate(videos)
        with self._lock, torch.inference_mode():
            maps = np.empty((len(frames), *self._backbone.map_shape), np.float32)
            before = self._forward.seconds
            for start in range(0, len(frames), self._batch_size):
                rows = slice(start, start + self._batch_size)
                self._forward.submit(frames[rows], maps[rows])
            self._forward.finish()
            started = time.perf_counter()
            num_joined = self.bundle.num_joined
            maps = join_maps(maps, num_joined)
            counts = [len(video) // num_joined for video in videos]
            logits, neurons = self._run_head(maps)
            firsts = np.cumsum([0, *counts[:-1]])
            attention = self._attend(maps[firsts])
            seconds = {
                "backbone": self._forward.seconds - before,
                "head": time.perf_counter() - started,
            }
        pooled = maps.mean(axis=(2, 3, 4))
        share = {part: value / len(videos) for part, value in seconds.items()}
        answers = []
        end = 0
        for number, count in enumerate(counts):
            rows = slice(end, end := end + count)
            answers.append(
                _Computed(
                    logits[rows],
                    None if neurons is None else neurons[rows],
                    pooled[rows].mean(axis=0),
                    share,
                    None if attention is None else attention[number],
                )
            )
        return answers

    def _join_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames [V, T, H, W, 3] of views whose maps are joined one after another, too."""
        return frames.reshape(len(frames) // self.bundle.num_joined, -1, *frames.shape[2:])

    def _attend(self, maps: np.ndarray) -> np.ndarray | None:
        """What the readout took of maps `[n, C, T, H, W]`: [n, T, H, W]."""
        if not self._with_attention:
            return None
        found = attention_map(self._head, torch.from_numpy(maps).to(self._device))
        return None if found is None else found.cpu().numpy()

    def _run_head(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits [n, K] and, of a head that routes, neurons [n, L], in one pass."""
        x = torch.from_numpy(maps).to(self._device)
        if not self._routes:
            return self._answering(x).cpu().numpy(), None
        choices: list[Tensor] = []
        logits = self._answering(x, choices=choices)
        return logits.cpu().numpy(), torch.stack(choices, dim=1).cpu().numpy()


class _Computed(NamedTuple):
    """Of one video: see `Prediction`."""

    logits: np.ndarray
    neurons: np.ndarray | None
    pooled: np.ndarray
    seconds: dict[str, float]
    attention: np.ndarray | None
