"""Fine-tuning: the training of a backbone and its head on videos, epoch by epoch.

Enters: an `EndToEnd` model, a `VideoFeed` over the training split, sections of the settings.
Leaves: the model, trained in place and in evaluation mode, and a history like `train_head`'s.
Held-out clips, early stopping, averages, checkpoints and several processes are those of the
training on maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings import (
    OF_THE_RUN,
    FinetuneSettings,
    InnerStep,
    LearningSettings,
    TrainSettings,
    UdlSettings,
)
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.views import ViewPlan, ViewRow
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head.recalibration import num_recalibration_passes, recalibrate
from dsts_pipeline.learn.end_to_end import EndToEnd, stage_number
from dsts_pipeline.learn.optimizers import forward_context
from dsts_pipeline.learn.passes import Asking, MapPass, make_passes
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.resume import CheckpointOptions
from dsts_pipeline.learn.steps import Draw, Objective, head_of, run_at
from dsts_pipeline.learn.train import OnEpoch, run_training
from dsts_pipeline.learn.training import Recipe, Training
from dsts_pipeline.learn.videos import VideoFeed

T = TypeVar("T")


class Finetuned(NamedTuple):
    """What a fine-tuning leaves beside the model: its history, the rows of held-out clips."""

    history: list[dict[str, Any]]
    heldout: np.ndarray


def finetune(
    model: EndToEnd,
    feed: VideoFeed,
    how: FinetuneSettings,
    udl: UdlSettings,
    train: TrainSettings,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    title: str = "finetune",
    processes: Processes = ALONE,
    checkpoints: CheckpointOptions | None = None,
) -> Finetuned:
    """Train backbone and head together; with a held-out part, keep the best epoch's values.

    The model as it comes takes part in that choice, so it does not end below its start on the
    held-out clips. Resumes bit for bit, as `train_head` does.

    Args:
        feed: All training clips; held-out clips are taken from them, the same ones as `train_head`
            takes for the same seed and fraction.
        train: Of which `heldout_fraction`, `heldout_by` and `data_seed` count.

    Returns:
        The history, as `train_head`'s, and the rows of the held-out clips.

    Raises:
        SettingsError: Too few clips for UDL's pairs of batches, or the training diverged.
        DataError: Too many clips cannot be decoded.
        CheckpointError: The checkpoint is damaged or in use.
        TrainingStopped: A stop was asked for; the training is saved.
    """
    recipe = JointRecipe(train, udl, seed=seed, finetune=how)
    training = JointTraining(model, feed, recipe, processes)
    history = run_training(training, checkpoints, title, on_epoch)
    return Finetuned(history, training.heldout)


@dataclass(frozen=True)
class JointRecipe(Recipe):
    """What decides a fine-tuning; clips come in random order, whatever the section `feed` says."""

    section: ClassVar[str] = "finetune"
    finetune: FinetuneSettings = FinetuneSettings()

    @property
    def learning(self) -> LearningSettings:
        """What all trainings have."""
        return self.finetune

    def to_json(self) -> dict[str, Any]:
        """All that decides the result, as plain values."""
        of_clips = {"heldout_fraction", "heldout_by", "data_seed"}
        return super().to_json() | {
            "train": self.train.model_dump(mode="json", include=of_clips),
            "finetune": self.finetune.model_dump(mode="json", exclude=set(OF_THE_RUN)),
        }


class JointTraining(Training):
    """What one `finetune` call holds between batches."""

    head: EndToEnd
    feed: VideoFeed
    recipe: JointRecipe

    def make_passes(self, asking: Asking[T]) -> T:
        """Make passes over the clips in their plain views."""
        size = self.how.part_size or self.how.batch_size
        return make_passes(asking, self.feed.plain, self.processes.device, batch_size=size)

    def finish(self) -> Asking[None]:
        """Put the best values back, in evaluation mode; their statistics are with them."""
        if self.best is not None:
            self.head.load_state_dict(self.best.values)
        elif self.average is not None:
            self.average.apply()
            yield from self._recalibrate(self.how.recompute_clips)
        self.head.eval()

    def begin_epoch(self) -> None:
        """Every epoch has views of its own."""
        self.feed.epoch = self.epoch
        super().begin_epoch()

    def _prepare(self, batch: FeatureBatch, progress: float) -> FeatureBatch:
        """Neither mixup nor fading noise: those are of the training on maps."""
        return batch

    def _objective(self) -> JointObjective:
        how = self.recipe.finetune
        return JointObjective(self.head, how, self.processes, inner_step=how.inner_step)

    def _rate_of(self, name: str) -> float:
        return peak_rate(self.head, name, self.recipe.finetune)

    def _recalibrate(self, num_clips: int | None) -> Asking[None]:
        """Choice: maps of `recompute_clips` clips are computed once and held in memory for the
        passes; on maps from a store all clips serve at the end."""
        head = head_of(self.head)
        if not self.how.recompute_statistics or not num_recalibration_passes(head):
            return
        maps: list[Tensor] = []

        @torch.no_grad()
        def collect(batch: FeatureBatch) -> None:
            maps.append(self.head.maps(batch.maps).cpu())

        was_training = self.head.training
        self.head.eval()
        yield MapPass(self.draw_rows(num_clips), collect)
        self.head.train(was_training)
        device = self.processes.device
        recalibrate(head, lambda: (part.to(device) for part in maps))


def peak_rate(model: EndToEnd, name: str, how: FinetuneSettings) -> float:
    """Peak learning rate of the parameter `name` of `model`.

    The last stage of the backbone learns at `backbone_learning_rate_factor` of the rate, each stage
    before it at `layer_decay` times the rate of the next.
    """
    inner = model.name_below_root(name)
    if inner is None:
        return how.rate_of(name.removeprefix(HEAD))
    number = stage_number(inner, model.stages) or 0  # in no stage: as the first
    depth = len(model.stages) - 1 - number
    return how.learning_rate * how.backbone_learning_rate_factor * how.layer_decay**depth


# ---- the loss, with the backbone among the downstream parameters (paper 3.3, Eq. 9-11) ---------
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

HEAD = "head."  # what the names of the head's parameters begin with


@dataclass(frozen=True)
class JointObjective(Objective):
    """Loss of an `EndToEnd` model on frames.

    Args:
        inner_step: What UDL's simulated step moves.
    """

    inner_step: InnerStep = "head"

    @property
    def model(self) -> EndToEnd:
        """The model."""
        assert isinstance(self.head, EndToEnd)
        return self.head

    def draw(self, batch: FeatureBatch, generator: torch.Generator | None = None) -> Draw:
        """Fix the randomness of a pass, the backbone's too."""
        drawn = super().draw(batch, generator)
        if not self.model.dropout:
            return drawn
        device = None if generator is None else generator.device
        seed = torch.randint(2**62, (1,), generator=generator, device=device)
        return replace(drawn, seed=int(seed) + self.processes.rank)

    def simulated(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """u, and what of d the simulated step moves."""
        upstream, downstream = super().simulated()
        if self.inner_step == "all":
            return upstream, downstream
        return upstream, {n: p for n, p in downstream.items() if n.startswith(HEAD)}

    def with_features(self, draw: Draw, *, of_training: bool, with_graph: bool) -> Draw:
        """The draw with its maps, where the simulated step leaves the backbone alone."""
        if self.inner_step == "all":
            return draw
        frames = draw.batch.maps
        with (
            nullcontext() if with_graph else torch.no_grad(),
            forward_context(self.how.precision, frames.device),
        ):
            maps = self.model.maps(frames, update_statistics=with_graph, seed=draw.seed)
        return replace(draw, features=maps)

    def constant(self, draw: Draw) -> Draw:
        """The draw with its maps cut from the backbone."""
        return draw if draw.features is None else replace(draw, features=draw.features.detach())

    def _run(
        self, draw: Draw, parameters: dict[str, Tensor] | None, options: dict[str, Any]
    ) -> Any:
        if draw.features is None:
            return run_at(self.model, parameters, draw.batch.maps, options | {"seed": draw.seed})
        if parameters is not None:
            parameters = {name.removeprefix(HEAD): value for name, value in parameters.items()}
        return run_at(self.model.head, parameters, draw.features, options)


# ---- answers -----------------------------------------------------------------------------------
#
# What a model answers on clips, straight from their videos, in all views that evaluation takes.


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
    was_training = model.training
    device = model.backbone.device
    model.eval()
    found = Answers()
    parts = []
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
            rows = []
            frames = []
        rows += of_clip
        frames.append(answer.frames)
    if rows:
        yield rows, torch.from_numpy(np.concatenate(frames))
