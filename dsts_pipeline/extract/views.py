"""Which frames of which videos are wanted: the rows of a store, and a request for each clip.

Enters: a clip index, how the backbone is fed, how many views are wanted. Leaves: the store's rows,
a row per view, the views of a clip next to each other, the clips of a file, too, and a
`FrameRequest` for some views of one clip, or of several of one file, which `decode_pool` answers.

Test clips (and those held out of train) get V = clips x crops views: the segments are sampled
`test_clips` times, shifted against each other, and of each sample `test_crops` squares are cut (1:
the middle; 3: left, middle, right, as mmaction2's ThreeCrop). Evaluation averages their answers.
Training clips get K views, augmented if asked for; training takes one of them per epoch, so that a
cache gives what training on videos gives, K epochs long.

Where clips are cut into S segments, stretches of equal length that follow one another, each segment
is sampled as though it were a clip, and the S of one view stand next to each other: view v is of
segment v mod S. `feature_store.joining` reads them as one long map.
Source: num_segments of V-JEPA 2's frozen evaluation, https://github.com/facebookresearch/vjepa2.
Choice: the segments of a training view share one draw of crop, mirroring and colours, as though the
whole clip were augmented; V-JEPA 2 draws for each. Frames are drawn for each here, too.

All that is drawn at random follows from the seed, the clip's id and the view's number, so the same
store comes out however the work is spread. Nothing here needs torch or pydantic: decode processes
import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.random import Generator

from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.clips.decode import Decoder, find_refusal, has_decord, name_decoder
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.probe import VideoInfo
from dsts_pipeline.clips.sampling import SAMPLERS, jitter_generator, uniform_frames
from dsts_pipeline.extract.augmentation import Augmentation, import_transforms
from dsts_pipeline.extract.flow import (
    NUM_CHANNELS,
    NUM_FRAMES,
    Modality,
    count_starts,
    describe_flow,
    stack_frames,
)
from dsts_pipeline.extract.pipelines import Pipeline, Scaling

if TYPE_CHECKING:
    from dsts_pipeline.base.settings import (
        AugmentationSettings,
        BackboneSettings,
        DatasetSettings,
    )

CENTRE = 1
_CROPS = {1: (CENTRE,), 3: (0, CENTRE, 2)}
_TRAIN = "train"
_TRAINING_OPTIONS = {"clip_len", "frame_interval", "out_of_bound", "keep_tail_frames", "target_fps"}


# ---- requests for frames ------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameView:
    """One view of a clip.

    Attributes:
        indices: Frame numbers in the file, T of them; of optical flow the six of each stack.
        crop: Where the square lies along the longer side: 0 at its start, 1 in the middle, 2 at
            its end. Not looked at where the view is augmented.
        seed: Of the augmentation; None: the view is not augmented.
        is_flipped: Whether an augmented view is mirrored left to right.
    """

    indices: tuple[int, ...]
    crop: int = CENTRE
    seed: int | None = None
    is_flipped: bool = False


@dataclass(frozen=True)
class DecodeJob:
    """Something that a decode process does with the video at `path`.

    Attributes:
        fallback: Tried where `decoder` fails; None: nothing is.
    """

    path: str
    decoder: Decoder = "auto"
    fallback: Decoder | None = None

    @property
    def answer_bytes(self) -> int:
        """Size of the answer's frames."""
        raise NotImplementedError

    @property
    def parts(self) -> Sequence[DecodeJob]:
        """The jobs that this one does at once, each of which has an answer of its own."""
        return (self,)


class Content(NamedTuple):
    """What a file held when it was indexed."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FrameRequest(DecodeJob):
    """Some views of one video: uint8 [V, T, H, W, C] are wanted, C = 3, of optical flow 10.

    Attributes:
        size_px: Side of the square that is cut, H = W; None: whole frames as they are stored.
        resize_px: What the shorter side is scaled to before; None: `size_px`.
        scaling: The model's rule; None: the decoder scales.
        squeezes: Whether both sides are scaled to `resize_px`, whatever the frame's shape.
        augmentation: What happens to views that have a seed.
        content: What the file must still hold; None: whatever it holds.
        info: What the file is, where that is known.
        shared_by: Requests of the clips that are read at once; empty: it is one clip's.
        modality: Whether frames are wanted as they are, or optical flow of them.
    """

    views: tuple[FrameView, ...]
    size_px: int | None
    resize_px: int | None = None
    scaling: Scaling | None = None
    squeezes: bool = False
    augmentation: Augmentation = Augmentation()
    content: Content | None = None
    info: VideoInfo | None = None
    shared_by: tuple[FrameRequest, ...] = ()
    modality: Modality = "rgb"

    @property
    def answer_bytes(self) -> int:
        """Size of the frames."""
        assert self.size_px is not None, "a pool bounds its memory by sizes that are known"
        num_frames = sum(len(view.indices) for view in self.views)
        if self.modality == "flow":
            return num_frames // NUM_FRAMES * self.size_px**2 * NUM_CHANNELS
        return num_frames * self.size_px**2 * 3

    @property
    def parts(self) -> Sequence[DecodeJob]:
        """One request for each clip."""
        return self.shared_by or (self,)


def share_file(requests: Sequence[FrameRequest]) -> FrameRequest:
    """One request for all views of `requests`, clips of one file that are decoded alike.

    It has no fallback: which decoder reads a clip must not depend on its neighbours, so where one
    of them fails, each is asked for alone, by its own request.
    """
    if len(requests) == 1:
        return requests[0]
    views = tuple(view for request in requests for view in request.views)
    return replace(requests[0], fallback=None, views=views, shared_by=tuple(requests))


def preview_request(
    index: ClipIndex,
    clip: Clip,
    num_frames: int,
    *,
    size_px: int | None = None,
    decoder: Decoder = "auto",
    fallback: Decoder | None = None,
) -> FrameRequest:
    """`num_frames` frames of a clip, evenly spread, to be looked at by people: one view."""
    numbers = uniform_frames(clip.end_frame - clip.start_frame, num_frames)
    return FrameRequest(
        str(Path(index.root) / clip.path),
        decoder,
        fallback,
        views=(FrameView(_in_file(clip.start_frame, numbers)),),
        size_px=size_px,
        info=clip.video_info,
    )


# ---- how a backbone is fed, and how many views of a clip there are ------------------------------


class ClipInput(Protocol):
    """What a backbone is fed: T frames of size_px x size_px.

    It may have a `pipeline`, its own rule of sampling and scaling, and then a `resize_px`; and a
    `modality`, without which it is fed frames.
    """

    @property
    def num_frames(self) -> int: ...
    @property
    def size_px(self) -> int: ...


@dataclass(frozen=True)
class InputRule:
    """How a backbone is fed, as plain values that a decode process can be sent.

    Attributes:
        num_frames, size_px, resize_px, pipeline, modality: As of `Backbone`.
    """

    num_frames: int
    size_px: int
    resize_px: int
    pipeline: Pipeline | None = None
    modality: Modality = "rgb"

    @classmethod
    def of(cls, backbone: ClipInput) -> InputRule:
        """The rule of a backbone."""
        size_px = backbone.size_px
        resize_px = getattr(backbone, "resize_px", size_px)
        return cls(
            backbone.num_frames,
            size_px,
            resize_px,
            getattr(backbone, "pipeline", None),
            getattr(backbone, "modality", "rgb"),
        )

    @property
    def num_channels(self) -> int:
        """C of a frame, or of a stack of optical flow."""
        return NUM_CHANNELS if self.modality == "flow" else 3

    @property
    def scaling(self) -> dict[str, Any]:
        """How frames are scaled and what is made of them, as `FrameRequest` has it."""
        if self.pipeline is None:
            return {"modality": self.modality}
        return {
            "modality": self.modality,
            "scaling": self.pipeline.scaling,
            "squeezes": self.pipeline.squeezes,
        }

    def count_starts(self, num_frames: int) -> int:
        """Among how many frames of a clip its T frames, or stacks, begin."""
        return count_starts(num_frames) if self.modality == "flow" else num_frames

    def frames_from(self, starts: np.ndarray, num_frames: int) -> np.ndarray:
        """The frames that are decoded for T of them, or for T stacks."""
        return stack_frames(starts, num_frames) if self.modality == "flow" else starts


@dataclass(frozen=True)
class Views:
    """How many views of each clip there are, and how training views are changed.

    Attributes:
        train: K, views of a training clip.
        test_clips, test_crops: V is their product; crops are 1 or 3.
        segments: S, stretches that a clip is cut into, each of which has all of these views.
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
    segments: int = 1
    augmentation: Augmentation = Augmentation()
    flips: FlipRule = field(default=FlipRule())
    seed: int = 0

    def __post_init__(self) -> None:
        fewest = min(self.train, self.test_clips, self.segments)
        if fewest < 1 or self.test_crops not in _CROPS:
            raise ValueError(
                f"{self.train} training views, {self.test_clips} clips, {self.test_crops} crops of "
                f"{self.segments} segments: expected at least 1, 1, and 1 or 3, of at least 1"
            )
        if self.augmentation.flip:
            self.flips.map_label(0)

    @property
    def num_test(self) -> int:
        """V S, views of a clip of any split but train."""
        return self.test_clips * self.test_crops * self.segments

    def count(self, split: str) -> int:
        """Views of a clip of `split`."""
        return self.train * self.segments if split == _TRAIN else self.num_test

    def describe(self) -> dict[str, Any]:
        """For a store's fingerprint; empty where every clip has its one plain view."""
        is_one = self.count(_TRAIN) == self.num_test == 1
        if is_one and not self.augmentation.is_on:
            return {}
        described: dict[str, Any] = {"train": self.train}
        described |= {"test_clips": self.test_clips, "test_crops": self.test_crops}
        if self.segments > 1:
            described["segments"] = self.segments
        if self.augmentation.is_on:
            described |= {"augmentation": self.augmentation.describe(), "seed": self.seed}
        return {"views": described}


def choose_views(chosen: BackboneSettings, dataset: DatasetSettings) -> Views:
    """How many maps the settings ask for per clip, and how those of training clips are changed.

    Raises:
        SettingsError: Views are to be mirrored and a mirrored clip has no class.
    """
    views = chosen.views
    return Views(
        train=views.train,
        test_clips=views.test_clips,
        test_crops=views.test_crops,
        segments=views.segments,
        seed=views.seed,
        augmentation=choose_augmentation(views.augmentation),
        flips=FlipRule(dataset.flip, dataset.flip_pairs),
    )


def choose_augmentation(chosen: AugmentationSettings) -> Augmentation:
    """The section as decode processes take it, which start without pydantic."""
    return Augmentation(
        crop=chosen.crop,
        flip=chosen.flip,
        color_jitter=chosen.color_jitter,
        rand_augment=chosen.rand_augment,
        erasing=chosen.erasing,
    )


def choose_fallback(chosen: BackboneSettings) -> Decoder | None:
    """The decoder of files that the first one can't read; None for none."""
    return None if chosen.decoder_fallback == "none" else chosen.decoder_fallback


# ---- the rows of a store ------------------------------------------------------------------------


class ViewRow(NamedTuple):
    """A row of the store: clip number `clip` of the index in view `view`, and its class."""

    clip: int
    view: int
    label: int


@dataclass(frozen=True)
class ViewPlan:
    """The rows of the store of `index`, in its order, and the requests whose frames they are of.

    Attributes:
        input: The backbone, or anything that says what it is fed.
        decoder, fallback: See `DecodeJob`.
    """

    index: ClipIndex
    input: ClipInput
    views: Views = Views()
    decoder: Decoder = "auto"
    fallback: Decoder | None = None

    @property
    def warm_up(self) -> Callable[[], None] | None:
        """What a decode process does before its first request; None: nothing."""
        return import_transforms if self.views.augmentation.is_on else None

    @cached_property
    def rows(self) -> tuple[ViewRow, ...]:
        """All rows: in the index's order, but clips of one file together, as they follow in it."""
        clips = self.index.clips
        place: dict[str, int] = {}
        for clip in clips:
            place.setdefault(clip.path, len(place))
        order = sorted(
            range(len(clips)), key=lambda n: (place[clips[n].path], clips[n].start_frame)
        )
        return tuple(
            self.row(number, view)
            for number in order
            for view in range(self.views.count(clips[number].split))
        )

    @property
    def samples(self) -> list[tuple[str, int, str, int]]:
        """(id, label, split, view) per row, as a store's plan wants them."""
        clips = self.index.clips
        return [(clips[r.clip].id, r.label, clips[r.clip].split, r.view) for r in self.rows]

    @cached_property
    def frames(self) -> np.ndarray:
        """Frame numbers int32 [rows, T], in the count of each video file."""
        step = NUM_FRAMES if self._input.modality == "flow" else 1  # of a stack its first
        numbers = [self.frame_view(row).indices[::step] for row in self.rows]
        return np.array(numbers, dtype=np.int32).reshape(len(self.rows), -1)

    def clip_of(self, position: int) -> Clip:
        """The clip that row number `position` is a view of."""
        return self.index.clips[self.rows[position].clip]

    def jobs(self, positions: Sequence[int], most_bytes: int = 0) -> Iterator[FrameRequest]:
        """A request for each clip of these neighbouring rows, for those of its views.

        Args:
            most_bytes: Neighbours of one file share a request whose frames take no more; 0: none.
        """
        rows = [self.rows[position] for position in positions]
        requests = (self.job(tuple(each)) for _, each in groupby(rows, key=lambda row: row.clip))
        # What is checked of a file is checked once, so it must be the same of all that share it.
        file_of = attrgetter("path", "content", "info")
        for _, of_file in groupby(requests, key=file_of):
            together: list[FrameRequest] = []
            num_bytes = 0
            for request in of_file:
                num_bytes += request.answer_bytes
                if together and num_bytes > most_bytes:
                    yield share_file(together)
                    together = []
                    num_bytes = request.answer_bytes
                together.append(request)
            yield share_file(together)

    def job(self, rows: Sequence[ViewRow]) -> FrameRequest:
        """The request for these rows, all of one clip; they need not be among `self.rows`."""
        clip = self.index.clips[rows[0].clip]
        return FrameRequest(
            str(Path(self.index.root) / clip.path),
            self.decoder,
            self.fallback,
            views=tuple(self.frame_view(row) for row in rows),
            size_px=self._input.size_px,
            resize_px=self._input.resize_px,
            **self._input.scaling,
            augmentation=self.views.augmentation,
            content=Content(clip.size_bytes, clip.sha256),
            info=clip.video_info,
        )

    def row(self, clip: int, view: int) -> ViewRow:
        """View number `view` of clip number `clip`, with the class that it shows.

        Augmented views are there in any number: each is a draw of its own.
        """
        return ViewRow(clip, view, self._label(self.index.clips[clip], view))

    def frame_view(self, row: ViewRow) -> FrameView:
        """Which frames one row shows, and how they are cut."""
        clip = self.index.clips[row.clip]
        views = self.views
        rule = self._input
        length = clip.end_frame - clip.start_frame
        fps = clip.fps or None
        if clip.split != _TRAIN:
            return view_at_test(rule, views, row.view, length, fps, clip.start_frame)
        number, segment = divmod(row.view, views.segments)
        first, length = cut_segment(length, views.segments, segment)
        first += clip.start_frame
        starts = rule.count_starts(length)
        if not views.augmentation.is_on:
            samples = sample_views(starts, rule.num_frames, views.train, rule.pipeline, fps)
            return FrameView(_in_file(first, rule.frames_from(samples[number], length)))
        generator = jitter_generator(views.seed, clip.id, row.view)
        numbers = jitter_frames(starts, rule.num_frames, rule.pipeline, fps, generator)
        return FrameView(
            _in_file(first, rule.frames_from(numbers, length)),
            seed=derive_seed(views.seed, "augmentation", clip.id, number),
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
        if self._input.pipeline is not None:
            described["input_pipeline"] = self._input.pipeline.with_views().describe()
        if self._input.modality == "flow":
            described["optical_flow"] = describe_flow()
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

    @cached_property
    def _input(self) -> InputRule:
        return InputRule.of(self.input)

    def _label(self, clip: Clip, view: int) -> int:
        flipped = clip.split == _TRAIN and self._is_flipped(clip, view)
        return self.views.flips.map_label(clip.label) if flipped else clip.label

    def _is_flipped(self, clip: Clip, view: int) -> bool:
        probability = self.views.augmentation.flip
        if not probability:
            return False
        seed = derive_seed(self.views.seed, "flip", clip.id, view // self.views.segments)
        return bool(np.random.default_rng(seed).random() < probability)


def plan_views(
    index: ClipIndex, backbone: ClipInput, chosen: BackboneSettings, dataset: DatasetSettings
) -> ViewPlan:
    """The rows of the store that the settings ask for.

    Raises:
        SettingsError: Views are to be mirrored and a mirrored clip has no class.
    """
    views = choose_views(chosen, dataset)
    return ViewPlan(index, backbone, views, chosen.decoder, choose_fallback(chosen))


# ---- which frames a view shows: the backbone's own rule, or centres of equal segments -----------


def view_at_test(
    rule: InputRule,
    views: Views,
    number: int,
    num_frames: int,
    fps: float | None,
    start_frame: int = 0,
) -> FrameView:
    """View `number` of those that a test clip has: sample by sample, of each its squares, of each
    its segments.

    Args:
        num_frames, fps: Of the clip; fps None where the file does not say.
        start_frame: Where the clip begins in its file.

    Raises:
        SettingsError: The backbone's rule cannot take so many samples.
    """
    number, segment = divmod(number, views.segments)
    sample, crop = divmod(number, views.test_crops)
    first, length = cut_segment(num_frames, views.segments, segment)
    starts = rule.count_starts(length)
    samples = sample_views(starts, rule.num_frames, views.test_clips, rule.pipeline, fps)
    numbers = rule.frames_from(samples[sample], length)
    return FrameView(_in_file(start_frame + first, numbers), _CROPS[views.test_crops][crop])


def cut_segment(num_frames: int, num_segments: int, number: int) -> tuple[int, int]:
    """First frame and length of stretch `number` of a clip: floor(i n / S) to floor((i + 1) n / S).

    A clip of fewer frames than segments gives some of its frames to several.

    >>> [cut_segment(10, 4, number) for number in range(4)]
    [(0, 2), (2, 3), (5, 2), (7, 3)]
    """
    first = number * num_frames // num_segments
    return first, max(1, (number + 1) * num_frames // num_segments - first)


class FirstCut(NamedTuple):
    """How the first view of a test clip was cut.

    Attributes:
        share: The side of its square as a part of the frame's shorter side.
        crop: Which of three it is, as in `FrameView`.
        squeezes: Whether the whole frame was made a square before.
    """

    share: float
    crop: int
    squeezes: bool = False


def cut_of_first_view(made_of: Mapping[str, Any]) -> FirstCut:
    """How the first view was cut, by what a store's manifest says it is made of."""
    crop = _CROPS[made_of.get("views", {}).get("test_crops", 1)][0]
    pipeline = made_of.get("input_pipeline")
    if pipeline is None:
        return FirstCut(1.0, crop)
    squeezes = isinstance(pipeline["resize_px"], list)
    resize_px = max(pipeline["resize_px"]) if squeezes else pipeline["resize_px"]
    return FirstCut(min(1.0, pipeline["crop_px"] / resize_px), crop, squeezes)


def sample_views(
    num_frames: int, length: int, count: int, pipeline: Pipeline | None, fps: float | None
) -> np.ndarray:
    """`count` samples of `length` frames, as at test: numbers int64 [count, length], from 0.

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
        places = (np.arange(length) + generator.random(length)) * num_frames / length
        return np.minimum(places.astype(np.int64), num_frames - 1)  # a share may be rounded up to 1
    chosen = pipeline.with_views(1)
    if chosen.sampler not in SAMPLERS:
        # Dense positions are clips of neighbouring frames; in training, one of them.
        options = {k: v for k, v in chosen.options.items() if k in _TRAINING_OPTIONS}
        return SAMPLERS["dense"](num_frames, **options, generator=generator).reshape(-1)[:length]
    timed = {"fps": fps} if chosen.options.get("target_fps") else {}
    rule = SAMPLERS[chosen.sampler]
    return rule(num_frames, **chosen.options, **timed, generator=generator).reshape(-1)[:length]


def _in_file(start_frame: int, numbers: np.ndarray) -> tuple[int, ...]:
    return tuple((start_frame + numbers).tolist())
