"""Fine-tuning: the training of a backbone and its head on videos, epoch by epoch.

Enters: an `EndToEnd` model, a `VideoFeed` over the training split, options. Leaves: the model,
trained in place and in evaluation mode, and a history like `train_head`'s. Held-out clips, early
stopping, averages, checkpoints and several processes are those of the training on maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.base.progress import track
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.views import ViewPlan, ViewRow
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.learn.end_to_end.model import EndToEnd, stage_number
from dsts_pipeline.learn.end_to_end.videos import VideoFeed
from dsts_pipeline.learn.optimizers import LossScale, forward_context
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.passes import Asking, MapPass, make_passes
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.resume import CheckpointOptions
from dsts_pipeline.learn.steps import (
    Draw,
    Objective,
    Stepper,
    StepResult,
    check_disjoint,
    downstream_of,
    upstream_of,
)
from dsts_pipeline.learn.train import OnEpoch, run_training
from dsts_pipeline.learn.training import Training

# ---- One iteration with the backbone among the downstream parameters (paper 3.3, Eq. 9-11). -----
#
# Let w be the backbone's parameters, u and h those of the head (upstream and downstream), so that
# `d = (w, h)`, and let `m(x; w)` be the map of clips x. The loss is `L(u, h, m(x; w))`. Two ways:
#
# "all", the literal text. The simulated step moves all of d:
#
#     d_hat = d - alpha grad_d L(u, h, m(x_train; w))                                      (Eq. 9)
#     u'    = u - alpha grad_u L(u_hat, h_hat, m(x_val; w_hat))  (u_hat is u held constant) (Eq. 10)
#     d'    = d - alpha grad_d L(u', h, m(x_train; w))                                     (Eq. 11)
#
# The training clips go through the backbone twice (Eq. 9 and 11), the validation clips once, with
# other weights, and the second derivative reaches into the backbone.
#
# "head". Deviation: the simulated step leaves the backbone alone,
#
#     h_hat = h - alpha grad_h L(u, h, m_train),   m_train = m(x_train; w)
#     u'    = u - alpha grad_u L(u_hat, h_hat, m_val),   m_val = m(x_val; w)
#     d'    = d - alpha grad_d L(u', h, m(x_train; w))
#
# so that Eq. 9 and 10 happen in the head, on maps that are constants. Eq. 11 is kept as it is. u'
# is no argument of m, hence m_train is the very map that Eq. 11 needs: its graph, kept since Eq. 9,
# is gone through backwards once. Each clip passes the backbone once. What is lost of the meta-
# gradient is the part by which u moves w_hat, `-alpha d/du [grad_w L(u, h, m_train) . grad_{w_hat}
# L_val]`.

InnerStep = Literal["head", "all"]


@dataclass(frozen=True)
class FrameDraw(Draw):
    """A batch of frames with the noise of its pass; `seed` is that of the backbone's dropout."""

    seed: int | None = None


@dataclass(frozen=True)
class JointObjective(Objective):
    """Loss of an `EndToEnd` model on frames."""

    def draw(self, batch: FeatureBatch, generator: torch.Generator | None = None) -> FrameDraw:
        """Fix the randomness of a pass, the backbone's too."""
        drawn = super().draw(batch, generator)
        seed = None
        if self.model.dropout:
            device = None if generator is None else generator.device
            drawn_seed = torch.randint(2**62, (1,), generator=generator, device=device)
            seed = int(drawn_seed) + self.processes.rank
        return FrameDraw(drawn.batch, drawn.noise, seed)

    @property
    def model(self) -> EndToEnd:
        """The model."""
        assert isinstance(self.head, EndToEnd)
        return self.head

    @property
    def of_the_head(self) -> Objective:
        """The same loss as a function of maps and the head's parameters."""
        return Objective(
            self.model.head,
            self.label_smoothing,
            self.balance_weight,
            self.precision,
            self.processes,
        )

    def options_of(self, draw: Draw) -> dict[str, Any]:
        """The dropout's seed goes to the model."""
        assert isinstance(draw, FrameDraw)
        return {"seed": draw.seed}

    def map_part(self, draw: Draw, *, with_graph: bool, update_statistics: bool = False) -> Draw:
        """The part with its map in place of its frames."""
        assert isinstance(draw, FrameDraw)
        batch = draw.batch
        with (
            nullcontext() if with_graph else torch.no_grad(),
            forward_context(self.precision, batch.maps.device),
        ):
            maps = self.model.maps(batch.maps, update_statistics=update_statistics, seed=draw.seed)
        return Draw(replace(batch, maps=maps), draw.noise)


@dataclass
class JointStepper(Stepper):
    """Makes the iterations of end-to-end training.

    Args:
        inner_step: What UDL's simulated step moves: "head" or "all"; see above.
    """

    inner_step: InnerStep = "head"

    def udl_step(
        self, train_batch: FeatureBatch, val_batch: FeatureBatch, *, inner_lr: float
    ) -> StepResult:
        """UDL's three steps on frames.

        A batch that is gone through in parts keeps no graph of more than one part: with "head" the
        maps of its training clips are then computed twice, once for Eq. 9 and 10, once for Eq. 11.
        """
        if self.inner_step == "all":
            return super().udl_step(train_batch, val_batch, inner_lr=inner_lr)
        check_disjoint(train_batch, val_batch)
        joint = self.objective
        assert isinstance(joint, JointObjective)
        train, val = self._parts(train_batch), self._parts(val_batch)
        keeps = len(train) == 1
        with_maps = [
            (joint.map_part(draw, with_graph=keeps, update_statistics=keeps), weight)
            for draw, weight in train
        ]
        of_val = [(joint.map_part(draw, with_graph=False), weight) for draw, weight in val]
        head = joint.of_the_head
        self._meta_update(head, [(_constant(draw), w) for draw, w in with_maps], of_val, inner_lr)
        if self.redraw:
            train = self._parts(train_batch)
        if not keeps:
            return self._downstream_update(joint, train)
        if self.redraw:
            with_maps = [(Draw(with_maps[0][0].batch, train[0][0].noise), with_maps[0][1])]
        return self._downstream_update(head, with_maps)


def _constant(draw: Draw) -> Draw:
    """The part with its map cut from the backbone."""
    batch: FeatureBatch = replace(draw.batch, maps=draw.batch.maps.detach())
    return Draw(batch, draw.noise)


# ---- How backbone and head are trained together: the head's options and the backbone's own. -----


@dataclass(frozen=True)
class FinetuneOptions(TrainingOptions):
    """Options of `finetune`.

    Args:
        inner_step: What UDL's simulated step moves, "head" or "all"; see `steps`.
        backbone_learning_rate_factor: Of the backbone's learning rate against the head's; Video
            Swin's recipe has 0.1.
        layer_decay: The last stage of the backbone learns at that rate, each stage before it at
            `layer_decay` times the rate of the next; 1: all alike.
        evaluation_batch: Clips at a time where nothing is differentiated.
    """

    section: ClassVar[str] = "finetune"
    inner_step: InnerStep = "head"
    backbone_learning_rate_factor: float = 0.1
    layer_decay: float = 1.0
    evaluation_batch: int = 32

    def rates_of(self, model: EndToEnd, names: Iterable[str]) -> dict[str, float]:
        """Peak learning rate of each parameter of `model` in `names`."""
        return {name: self._rate_of(model, name) for name in names}

    def _rate_of(self, model: EndToEnd, name: str) -> float:
        inner = model.name_below_root(name)
        if inner is None:
            return self.learning_rate_of(name.removeprefix("head."))
        number = stage_number(inner, model.stages) or 0  # in no stage: as the first
        depth = len(model.stages) - 1 - number
        return self.learning_rate * self.backbone_learning_rate_factor * self.layer_decay**depth


# ---- Fine-tuning: the training of a backbone and its head on videos, epoch by epoch. ------------
#
# Enters: an `EndToEnd` model, a `VideoFeed` over the training split, options. Leaves: the model,
# trained in place and in evaluation mode, and a history like `train_head`'s. Held-out clips, early
# stopping, averages, checkpoints and several processes are those of the training on maps.

T = TypeVar("T")


class Finetuned(NamedTuple):
    """What a fine-tuning leaves beside the model: its history, the rows of held-out clips."""

    history: list[dict[str, Any]]
    heldout: np.ndarray


def finetune(
    model: EndToEnd,
    feed: VideoFeed,
    *,
    on_epoch: OnEpoch | None = None,
    title: str = "finetune",
    processes: Processes = ALONE,
    checkpoints: CheckpointOptions | None = None,
    **options: Any,
) -> Finetuned:
    """Train backbone and head together; with a held-out part, keep the best epoch's values.

    The model as it comes takes part in that choice, so it does not end below its start on the
    held-out clips. Resumes bit for bit, as `train_head` does.

    Args:
        feed: All training clips; held-out clips are taken from them, the same ones as `train_head`
            takes for the same seed and fraction.
        options: Those of `FinetuneOptions`.

    Returns:
        The history, as `train_head`'s, and the rows of the held-out clips.

    Raises:
        SettingsError: Too few clips for UDL's pairs of batches, or the training diverged.
        DataError: Too many clips cannot be decoded.
        CheckpointError: The checkpoint is damaged or in use.
        TrainingStopped: A stop was asked for; the training is saved.
    """
    training = JointTraining(model, feed, FinetuneOptions(**options), processes)
    history = run_training(training, checkpoints, title, on_epoch)
    return Finetuned(history, training.heldout)


class JointTraining(Training):
    """What one `finetune` call holds between batches."""

    options: FinetuneOptions
    feed: VideoFeed

    def __init__(
        self, model: EndToEnd, feed: VideoFeed, options: FinetuneOptions, processes: Processes
    ) -> None:
        self.model = model
        super().__init__(model, feed, options, processes)

    def make_passes(self, asking: Asking[T]) -> T:
        """Make passes over the clips in their plain views."""
        size = self.options.evaluation_batch
        return make_passes(asking, self.feed.plain, self.processes.device, batch_size=size)

    def finish(self) -> Asking[None]:
        """Put the best values back, in evaluation mode; their statistics are with them."""
        if self.best is not None:
            self.model.load_state_dict(self.best.values)
        elif self.average is not None:
            self.average.apply()
            yield from self._recalibrate(self.rows)
        self.model.eval()

    def begin_epoch(self) -> None:
        """Every epoch has views of its own."""
        self.feed.epoch = self.epoch
        super().begin_epoch()

    def _stepper(self) -> JointStepper:
        options, model = self.options, self.model
        upstream, downstream = upstream_of(model), downstream_of(model)
        return JointStepper(
            JointObjective(
                model,
                options.label_smoothing,
                options.balance_weight,
                options.precision,
                self.processes,
            ),
            options.optimizer_of(upstream, options.rates_of(model, upstream)),
            options.optimizer_of(downstream, options.rates_of(model, downstream)),
            LossScale.for_precision(options.precision),
            part_size=options.part_size,
            method=options.udl_method,
            redraw=options.redraw_noise,
            generator=torch.Generator(self.processes.device),
            inner_step=options.inner_step,
        )

    def _recalibrate(self, rows: np.ndarray) -> Asking[None]:
        """Choice: maps of the first `recompute_clips` clips are computed once and held in memory
        for the passes; on maps from a store all clips serve at the end."""
        if not self.options.recompute_statistics or self.dsts is None:
            return
        maps: list[Tensor] = []

        @torch.no_grad()
        def collect(batch: FeatureBatch) -> None:
            maps.append(self.model.maps(batch.maps).cpu())

        was_training = self.model.training
        self.model.eval()
        yield MapPass(rows[: self.options.recompute_clips], collect)
        self.model.train(was_training)
        device = self.processes.device
        recalibrate(self.dsts, lambda: (part.to(device) for part in maps))


# ---- ------------------------------------------------------------------------------------------
# What a model answers on clips, straight from their videos, in all views that evaluation takes.
#
# Enters: an `EndToEnd` model, clips, a plan of views. Leaves: class probabilities, a row per view.


@dataclass
class Answers:
    """Rows are views; those of a clip are neighbours.

    Attributes:
        clip_ids, labels: Of each row.
        probabilities: float32 `[n, K]`.
        failures: Clips that could not be decoded, with the reason.
    """

    clip_ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    failures: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def answer_clips(
    model: EndToEnd,
    plan: ViewPlan,
    clips: Sequence[int],
    pool: DecodePool,
    *,
    batch_size: int,
    title: str = "score",
) -> Answers:
    """Run `model`, in evaluation mode, over the views of `clips`.

    Args:
        plan: Says how many views a clip of its split has, and which.
        clips: Numbers in the plan's index.
        batch_size: Views at a time, at most (one clip's views are never split).
    """
    was_training, device = model.training, model.backbone.device
    model.eval()
    found, parts = Answers(), []
    with track(title, len(clips)) as progress:
        for rows, frames in _batches(plan, clips, pool, batch_size, found):
            parts.append(model(frames.to(device)).float().softmax(dim=1).cpu().numpy())
            found.clip_ids += [plan.index.clips[row.clip].id for row in rows]
            found.labels += [row.label for row in rows]
            progress.advance(len({row.clip for row in rows}))
    model.train(was_training)
    if parts:
        found.probabilities = np.concatenate(parts)
    return found


def _batches(
    plan: ViewPlan, clips: Sequence[int], pool: DecodePool, batch_size: int, found: Answers
) -> Iterator[tuple[list[ViewRow], Tensor]]:
    wanted = [
        [plan.row(n, view) for view in range(plan.views.count(plan.index.clips[n].split))]
        for n in clips
    ]
    rows: list[ViewRow] = []
    frames: list[np.ndarray] = []
    answers = pool.run(plan.job(of_clip) for of_clip in wanted)
    for of_clip, answer in zip(wanted, answers, strict=True):
        if answer.frames is None:
            found.failures[plan.index.clips[of_clip[0].clip].id] = answer.reason
            continue
        if rows and len(rows) + len(of_clip) > batch_size:
            yield rows, torch.from_numpy(np.concatenate(frames))
            rows, frames = [], []
        rows += of_clip
        frames.append(answer.frames)
    if rows:
        yield rows, torch.from_numpy(np.concatenate(frames))
