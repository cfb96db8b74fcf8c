"""Views of clips: which maps a store holds for each clip, and what a decode process makes of one.

Enters: a clip index, the backbone's input, how many views are wanted. Leaves: the store's rows, a
row per view, the views of a clip next to each other, and a decode job for some views of one clip.

Test clips (and those held out of train) get V = clips x crops views: the segments are sampled
`test_clips` times, shifted against each other, and of each sample `test_crops` squares are cut (1:
the middle; 3: left, middle, right, as mmaction2's ThreeCrop). Evaluation averages their answers.
Training clips get K views, augmented if asked for; training takes one of them per epoch, so that a
cache gives what training on videos gives, K epochs long.

All that is drawn at random follows from the seed, the clip's id and the view's number, so the same
store comes out however the work is spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.random import Generator

from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.clips.decode import Decoder, find_refusal, has_decord, name_decoder
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.sampling import SAMPLERS, jitter_generator, uniform_frames
from dsts_pipeline.extract.augmentation import Augmentation
from dsts_pipeline.extract.decode_pool import CENTRE, DecodeJob, FrameView
from dsts_pipeline.extract.pipelines import Pipeline

# ---- ------------------------------------------------------------------------------------------
# Which frames the views of a clip show: the backbone's own rule, or centres of equal segments.
#
# Enters: the number of frames of a clip. Leaves: frame numbers int64 [views, T], from 0.

_TRAINING_OPTIONS = {"clip_len", "frame_interval", "out_of_bound", "keep_tail_frames", "target_fps"}


def sample_views(
    num_frames: int, length: int, count: int, pipeline: Pipeline | None, fps: float | None
) -> np.ndarray:
    """`count` samples of `length` frames, as at test.

    Without a pipeline, frame i of sample v is floor((i + (v + 1/2) / count) n / length): together
    the samples are the centres of count x length segments, and one alone is the centres.

    Raises:
        SettingsError: The pipeline's rule cannot take so many samples.
    """
    if pipeline is not None:
        return pipeline.with_views(count).sample(num_frames, fps)
    return uniform_frames(num_frames, length * count).reshape(length, count).T


def jitter_frames(
    num_frames: int,
    length: int,
    pipeline: Pipeline | None,
    fps: float | None,
    generator: Generator,
) -> np.ndarray:
    """One sample [T] as in training: by the pipeline's rule, or any frame of each segment."""
    if pipeline is None:
        numbers = ((np.arange(length) + generator.random(length)) * num_frames / length).astype(
            np.int64
        )
        return np.minimum(numbers, num_frames - 1)  # a share next to 1 may be rounded up
    chosen = pipeline.with_views(1)
    if chosen.sampler in SAMPLERS:
        options = dict(chosen.options)
        timed = {"fps": fps} if options.get("target_fps") else {}
        rule = SAMPLERS[chosen.sampler]
    else:  # dense positions are clips of neighbouring frames; in training, one of them
        options = {k: v for k, v in chosen.options.items() if k in _TRAINING_OPTIONS}
        timed, rule = {}, SAMPLERS["dense"]
    return rule(num_frames, **options, **timed, generator=generator).reshape(-1)[:length]


# ---- ------------------------------------------------------------------------------------------
# Views of clips: which maps a store holds for each clip, and what a decode process makes of one.
#
# Enters: a clip index, the backbone's input, how many views are wanted. Leaves: the store's rows, a
# row per view, the views of a clip next to each other, and a decode job for some views of one clip.
#
# Test clips (and those held out of train) get V = clips x crops views: the segments are sampled
# `test_clips` times, shifted against each other, and of each sample `test_crops` squares are cut
# (1: the middle; 3: left, middle, right, as mmaction2's ThreeCrop). Evaluation averages their
# answers. Training clips get K views, augmented if asked for; training takes one of them per epoch,
# so that a cache gives what training on videos gives, K epochs long.
#
# All that is drawn at random follows from the seed, the clip's id and the view's number, so the
# same store comes out however the work is spread.

_CROPS = {1: (CENTRE,), 3: (0, CENTRE, 2)}
_TRAIN = "train"


class ClipInput(Protocol):
    """What a backbone is fed: T frames of size_px x size_px.

    It may have a `pipeline`, its own rule of sampling and scaling, and then a `resize_px`.
    """

    @property
    def num_frames(self) -> int: ...
    @property
    def size_px(self) -> int: ...


@dataclass(frozen=True)
class Views:
    """How many views of each clip there are, and how training views are changed.

    Attributes:
        train: K, views of a training clip.
        test_clips, test_crops: V is their product; crops are 1 or 3.
        augmentation: Of training views.
        flips: What a mirrored clip shows.
        seed: Of all that is drawn.

    Raises:
        SettingsError: Views are to be mirrored and a mirrored clip has no class.
        ValueError: A count is out of range.
    """

    train: int = 1
    test_clips: int = 1
    test_crops: int = 1
    augmentation: Augmentation = Augmentation()
    flips: FlipRule = field(default=FlipRule())
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.test_clips) < 1 or self.test_crops not in _CROPS:
            raise ValueError(
                f"{self.train} training views, {self.test_clips} clips, {self.test_crops} crops: "
                "expected at least 1, 1, and 1 or 3"
            )
        if self.augmentation.flip:
            self.flips.map_label(0)

    def count(self, split: str) -> int:
        """Views of a clip of `split`."""
        return self.train if split == _TRAIN else self.test_clips * self.test_crops

    def describe(self) -> dict[str, Any]:
        """For a store's fingerprint; empty where every clip has its one plain view."""
        if self.train == self.test_clips == self.test_crops == 1 and not self.augmentation.is_on:
            return {}
        described: dict[str, Any] = {"train": self.train}
        described |= {"test_clips": self.test_clips, "test_crops": self.test_crops}
        if self.augmentation.is_on:
            described |= {"augmentation": self.augmentation.describe(), "seed": self.seed}
        return {"views": described}


class Row(NamedTuple):
    """A row of the store: clip number `clip` of the index in view `view`, and its class."""

    clip: int
    view: int
    label: int


@dataclass(frozen=True)
class ViewPlan:
    """The rows of the store of `index`, in its order, and the decode jobs that make them.

    Attributes:
        input: The backbone, or anything that says what it is fed.
        decoder, fallback: See `DecodeJob`.
    """

    index: ClipIndex
    input: ClipInput
    views: Views = Views()
    decoder: Decoder = "auto"
    fallback: Decoder | None = None

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All rows."""
        return tuple(
            self.row(number, view)
            for number, clip in enumerate(self.index.clips)
            for view in range(self.views.count(clip.split))
        )

    @property
    def samples(self) -> list[tuple[str, int, str, int]]:
        """(id, label, split, view) per row, as a store's plan wants them."""
        clips = self.index.clips
        return [(clips[r.clip].id, r.label, clips[r.clip].split, r.view) for r in self.rows]

    @cached_property
    def frames(self) -> np.ndarray:
        """Frame numbers int32 [rows, T], in the count of each video file."""
        numbers = [self.frame_view(row).indices for row in self.rows]
        return np.array(numbers, dtype=np.int32).reshape(len(self.rows), -1)

    def clip_of(self, position: int) -> Clip:
        """The clip that row number `position` is a view of."""
        return self.index.clips[self.rows[position].clip]

    def jobs(self, positions: Sequence[int]) -> Iterator[DecodeJob]:
        """One job for each clip of these neighbouring rows, for those of its views."""
        rows = [self.rows[position] for position in positions]
        for _, of_clip in groupby(rows, key=lambda row: row.clip):
            yield self.job(tuple(of_clip))

    def job(self, rows: Sequence[Row]) -> DecodeJob:
        """The job that makes these rows, all of one clip; they need not be among `self.rows`."""
        clip = self.index.clips[rows[0].clip]
        return DecodeJob(
            path=str(Path(self.index.root) / clip.path),
            views=tuple(self.frame_view(row) for row in rows),
            size_bytes=clip.size_bytes,
            sha256=clip.sha256,
            decoder=self.decoder,
            size_px=self.input.size_px,
            resize_px=getattr(self.input, "resize_px", self.input.size_px),
            like_opencv=self._pipeline is not None,
            fallback=self.fallback,
            augmentation=self.views.augmentation,
            info=clip.video_info,
        )

    def row(self, clip: int, view: int) -> Row:
        """View number `view` of clip number `clip`, with the class that it shows.

        Augmented views are there in any number: each is a draw of its own.
        """
        return Row(clip, view, self._label(self.index.clips[clip], view))

    def frame_view(self, row: Row) -> FrameView:
        """What a decode process is told about one row."""
        clip, views = self.index.clips[row.clip], self.views
        if clip.split != _TRAIN:
            number, crop = divmod(row.view, views.test_crops)
            numbers = self._sample(clip, views.test_clips)[number]
            return FrameView(_in_file(clip, numbers), _CROPS[views.test_crops][crop])
        if not views.augmentation.is_on:
            return FrameView(_in_file(clip, self._sample(clip, views.train)[row.view]))
        generator = jitter_generator(views.seed, clip.id, row.view)
        numbers = jitter_frames(*self._length_of(clip), self._pipeline, clip.fps or None, generator)
        return FrameView(
            _in_file(clip, numbers),
            seed=derive_seed(views.seed, "augmentation", clip.id, row.view),
            is_flipped=self._is_flipped(clip, row.view),
        )

    def describe(self) -> dict[str, Any]:
        """For a store's fingerprint: clips, decoders, views."""
        described: dict[str, Any] = {
            "clips": {"dataset": self.index.dataset, "digest": self.index.digest},
            "decoder": self._name_decoder(),
        }
        if self.fallback is not None and self.fallback != self.decoder:
            described["decoder_fallback"] = name_decoder(self.fallback)
        if self._pipeline is not None:
            described["input_pipeline"] = self._pipeline.with_views().describe()
        return described | self.views.describe()

    def _name_decoder(self) -> str:
        """The decoders that read the clips, by name and version.

        Where decord reads all of them exactly, or none, "auto" is that one decoder, and stores made
        by it alone are the same. "decord" among clips that it does not read exactly is not what it
        was when it read them all the same.
        """
        infos = [clip.video_info for clip in self.index.clips]
        exact = [info is not None and find_refusal(info, "decord") is None for info in infos]
        if self.decoder == "auto" and not has_decord():
            return name_decoder("pyav")
        if self.decoder == "auto" and exact and all(exact):
            return name_decoder("decord")
        if self.decoder == "auto" and not any(exact):
            return name_decoder("pyav")
        inexact = self.decoder == "decord" and not all(exact)
        return name_decoder(self.decoder) + (" (exact frames only)" if inexact else "")

    @property
    def _pipeline(self) -> Pipeline | None:
        return getattr(self.input, "pipeline", None)

    def _length_of(self, clip: Clip) -> tuple[int, int]:
        return clip.end_frame - clip.start_frame, self.input.num_frames

    def _sample(self, clip: Clip, count: int) -> np.ndarray:
        return sample_views(*self._length_of(clip), count, self._pipeline, clip.fps or None)

    def _label(self, clip: Clip, view: int) -> int:
        flipped = clip.split == _TRAIN and self._is_flipped(clip, view)
        return self.views.flips.map_label(clip.label) if flipped else clip.label

    def _is_flipped(self, clip: Clip, view: int) -> bool:
        probability = self.views.augmentation.flip
        if not probability:
            return False
        seed = derive_seed(self.views.seed, "flip", clip.id, view)
        return bool(np.random.default_rng(seed).random() < probability)


def _in_file(clip: Clip, numbers: np.ndarray) -> tuple[int, ...]:
    return tuple((clip.start_frame + numbers).tolist())
