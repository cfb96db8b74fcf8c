"""One training: what decides it, what it holds, and how it goes through an epoch.

Enters: a head, a `FeatureFeed` over the training split, a `Recipe`, processes. Leaves: the head,
trained in place, and a history of plain dictionaries. `train` drives it, `resume` saves it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.progress import Track
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import (
    OF_THE_RUN,
    FeedSettings,
    LearningSettings,
    TrainSettings,
    UdlSettings,
)
from dsts_pipeline.base.training_clips import hold_out
from dsts_pipeline.feed import ClipFeed, EpochSampler, FeatureBatch
from dsts_pipeline.feed.epochs import SamplerCursor
from dsts_pipeline.head.inspection import summarize_head, usage_entropy
from dsts_pipeline.head.recalibration import recalibration_passes
from dsts_pipeline.learn.graphs import IterationGraphs
from dsts_pipeline.learn.optimizers import ScheduledOptimizer
from dsts_pipeline.learn.passes import (
    EVALUATION_BATCH,
    Asking,
    Evaluation,
    MapPass,
    evaluation_pass,
    make_passes,
)
from dsts_pipeline.learn.processes import Processes, keep_freed_memory
from dsts_pipeline.learn.steps import (
    Objective,
    Stepper,
    StepResult,
    downstream_of,
    dsts_of,
    mix_batch,
    upstream_of,
)

# ---- what decides a training -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The sections of settings that decide a training, and its seed.

    Args:
        reading: Of which the order of batches counts.
        seed: Of noise and mixup, and of batches and held-out clips where `train.data_seed` is None;
            the head's first values are the caller's.

    Raises:
        SettingsError: Early stopping, and nothing is held out.
    """

    section: ClassVar[str] = "train"  # of the settings, for messages
    train: TrainSettings
    udl: UdlSettings
    reading: FeedSettings = FeedSettings()
    seed: int = 0

    def __post_init__(self) -> None:
        patience = self.learning.early_stopping_epochs
        if patience is not None and not self.train.heldout_fraction:
            raise SettingsError(
                f"early_stopping_epochs is {patience} and heldout_fraction 0: there is nothing to "
                "judge an epoch by; set train.heldout_fraction, such as 0.1"
            )

    @property
    def learning(self) -> LearningSettings:
        """What all trainings have."""
        return self.train

    @property
    def stream_seed(self) -> int:
        """The seed of the order of batches and of what is held out.

        Trainings of different seeds and one data seed go through the same batches.
        """
        return self.seed if self.train.data_seed is None else self.train.data_seed

    def to_json(self) -> dict[str, Any]:
        """All that decides the result, as plain values."""
        return {
            "train": self.train.model_dump(mode="json", exclude=set(OF_THE_RUN)),
            "udl": self.udl.model_dump(mode="json"),
            "feed": order_of(self.reading),
            "seed": self.seed,
        }


def order_of(reading: FeedSettings) -> dict[str, Any]:
    """What of the settings of reading decides a training, as plain values."""
    return reading.model_dump(mode="json", include={"order", "shard_window", "class_balanced"})


# ---- the training ------------------------------------------------------------------------------

AfterBatch = Callable[[], None]
Pair = tuple[FeatureBatch, FeatureBatch | None]
T = TypeVar("T")


def most_unread(device: torch.device) -> int:
    """Steps whose loss nobody has looked at yet: a GPU is not waited for after each."""
    return 1 if device.type == "cpu" else 32


class Made(NamedTuple):
    """A step that was made, and its loss on the device."""

    num_steps: int
    position: int
    rows: Tensor
    loss: Tensor


@dataclasses.dataclass
class Best:
    """The best values on the held-out clips so far; `epoch` -1 is the untrained head.

    Choice: the most accurate, of equals the one of the lower loss. A head that overfits grows sure
    of its wrong answers, so its loss rises long before its accuracy falls.
    """

    accuracy: float
    loss: float
    epoch: int
    values: dict[str, Tensor]


class Training:
    """What one `train_head` call holds between batches.

    Attributes:
        epoch: The one in work or to come; `tally` is of it.
        cursor: The place in the sampler's batches, ahead of `epoch` where all its batches are done.
        history: An entry per finished epoch.
    """

    def __init__(
        self, head: nn.Module, feed: ClipFeed, recipe: Recipe, processes: Processes
    ) -> None:
        self.head = head
        self.feed = feed
        self.recipe = recipe
        self.how = recipe.learning
        self.processes = processes
        processes.adopt(head)
        keep_freed_memory()
        self.rows, self.heldout = hold_out(
            feed.rows,
            feed.labels,
            feed.groups,
            fraction=recipe.train.heldout_fraction,
            seed=recipe.stream_seed,
            by=recipe.train.heldout_by,
            origins=feed.origins,
        )
        self.dsts = dsts_of(head)
        self.udl = recipe.udl.enabled and bool(upstream_of(head))
        self.stepper = Stepper(
            self._objective(),
            self._optimizer(upstream_of(head)),
            self._optimizer(downstream_of(head)),
            recipe.udl,
            generator=torch.Generator(processes.device),
            graphs=self._graphs(),
        )
        self.sampler = self._sampler()
        self.cursor = SamplerCursor(self.sampler, paired=self.udl)
        decay = self.how.ema_decay
        self.average = None if decay is None else WeightAverage(head, decay)
        self.watch = Watch(feed, recipe)
        self.best: Best | None = None
        self.epoch = 0
        self.num_steps = 0
        self.history: list[dict[str, Any]] = []
        self.tally = Tally(head, processes)
        self._unread: list[Made] = []
        self._most_unread = most_unread(processes.device)

    def start(self) -> Asking[None]:
        """Make the untrained head the first candidate."""
        if len(self.heldout):
            found = yield from self._evaluate()
            self._consider(found, -1)

    def make_passes(self, asking: Asking[T]) -> T:
        """Make the passes that `start`, `end_epoch` or `finish` asks for."""
        size = self.pass_size
        return make_passes(asking, self.feed, self.processes.device, batch_size=size)

    @property
    def pass_size(self) -> int:
        """Maps at a time in passes: a part, since what does not fit in a step would not here."""
        return min(self.how.part_size or EVALUATION_BATCH, EVALUATION_BATCH)

    @property
    def ends_early(self) -> bool:
        """Whether early stopping has had enough epochs without a best one."""
        patience = self.how.early_stopping_epochs
        last = self.history[-patience:] if patience else []
        return bool(last) and len(last) == patience and not any(entry["best"] for entry in last)

    @property
    def is_done(self) -> bool:
        """Whether no epoch is to come."""
        return self.epoch >= self.how.num_epochs or self.ends_early

    def run_epoch(self, progress: Track, after_batch: AfterBatch) -> dict[str, Any]:
        """Train to the end of the epoch, evaluate, and describe both."""
        start = time.perf_counter() - self.tally.seconds
        self.begin_epoch()
        for batch, val_batch in self._batches():
            self.step(batch, val_batch)
            self.tally.seconds = time.perf_counter() - start
            progress.advance(len(batch) * self.processes.world_size, self.tally.describe())
            after_batch()
        entry = self.make_passes(self.end_epoch())
        entry["seconds"] = time.perf_counter() - start
        return entry

    def begin_epoch(self) -> None:
        """Before the epoch's first batch, and before the first one after a stop.

        The noise of an epoch starts from a seed of its own; in mid-epoch it goes on.
        """
        self.head.train()
        at_start = self.cursor.epoch == self.epoch and self.cursor.num_done == 0
        if at_start and self.stepper.generator is not None:
            seed = derive_seed(self.recipe.seed, "noise", self.epoch)
            self.stepper.generator.manual_seed(seed)

    def remaining(self) -> list[Any]:
        """Rows of the batches, or of UDL's pairs, of the epoch that are not done."""
        return self.cursor.remaining() if self.cursor.epoch == self.epoch else []

    def step(self, batch: FeatureBatch, val_batch: FeatureBatch | None) -> None:
        """Learn from the next batch, with UDL's validation batch where it takes one."""
        position = self.cursor.num_done
        num_batches = self.cursor.num_batches
        done = (self.epoch + position / num_batches) / self.how.num_epochs
        result = self._update(batch, val_batch, done)
        self.num_steps += 1
        self.tally.add(result, batch)
        self._unread.append(Made(self.num_steps, position, batch.rows, result.loss.clone()))
        if len(self._unread) == self._most_unread:
            self.catch_up()
        self.cursor.advance()

    def catch_up(self) -> None:
        """Read what the steps since the last reading came to.

        A GPU has its answers later than it is asked, and whoever reads them waits for all that was
        asked before: there it is done once in some steps, before a checkpoint and at an epoch's
        end.

        Raises:
            SettingsError: One of them diverged.
        """
        if self._unread:
            losses = torch.stack([made.loss for made in self._unread]).tolist()
            for made, loss in zip(self._unread, losses, strict=True):
                self.watch.check_loss(loss, self, made)
        self._unread.clear()
        self.tally.read()

    def end_epoch(self) -> Asking[dict[str, Any]]:
        """After the epoch's last batch: evaluate, describe, go on to the next epoch."""
        self.catch_up()
        self.watch.check_weights(self)
        entry = yield from self._describe_epoch()
        entry["seconds"] = self.tally.seconds
        self.history.append(entry)
        self.epoch += 1
        self.tally = Tally(self.head, self.processes)
        return entry

    def finish(self) -> Asking[None]:
        """Put the best values back, with statistics of more clips, in evaluation mode."""
        if self.best is not None:
            self.head.load_state_dict(self.best.values)
        elif self.average is not None:
            self.average.apply()
        if self.how.num_epochs:
            yield from self._recalibrate(self.recipe.train.recompute_clips_at_end)
        self.head.eval()

    def _describe_epoch(self) -> Asking[dict[str, Any]]:
        count = self.tally.num_clips
        entry: dict[str, Any] = {
            "epoch": self.epoch,
            "train_loss": self.tally.loss / count,
            "train_accuracy": self.tally.num_correct / count,
        }
        averaged: AbstractContextManager[None] = nullcontext()
        if self.average is not None:
            averaged = self.average.in_place()
        with averaged:
            yield from self._recalibrate(self.how.recompute_clips)
            routing = self.tally.routing
            if len(self.heldout):
                found = yield from self._evaluate()
                routing = found.routing
                entry |= {"heldout_loss": found.loss, "heldout_accuracy": found.accuracy}
                entry["best"] = self._consider(found, self.epoch)
                assert self.best is not None
                entry |= {"best_accuracy": self.best.accuracy, "best_loss": self.best.loss}
            if self.dsts is not None:
                entry["layers"] = summarize_head(self.dsts, routing)
        return entry

    def _batches(self) -> Iterator[Pair]:
        """The epoch's remaining batches, each with UDL's validation batch or None."""
        device = self.processes.device
        left = self.remaining()
        if self.udl:
            return ((a.to(device), b.to(device)) for a, b in self.feed.pairs(left))
        return ((batch.to(device), None) for batch in self.feed.batches(left))

    def _update(
        self, batch: FeatureBatch, val_batch: FeatureBatch | None, progress: float
    ) -> StepResult:
        factor = self.stepper.downstream.set_progress(progress)
        self.stepper.upstream.set_progress(progress)
        batch = self._prepare(batch, progress)
        if val_batch is None:
            result = self.stepper.plain_step(batch)
        else:
            alpha = self.recipe.udl.inner_learning_rate or factor * self.how.learning_rate
            result = self.stepper.udl_step(batch, val_batch, inner_lr=alpha)
        if self.average is not None:
            self.average.update()
        return result

    def _prepare(self, batch: FeatureBatch, progress: float) -> FeatureBatch:
        """Noise and mixup as they are at `progress` in [0, 1] of the training."""
        if self.dsts is not None and batch.maps.device.type == "cpu":
            self.dsts.check_values(batch.maps)  # on a GPU the host would wait: the loss tells
        train = self.recipe.train
        self.stepper.noise_scale = 1.0 + progress * (train.final_noise - 1.0)
        if not train.mixup_alpha:
            return batch
        place = self.num_steps, self.processes.rank
        seed = derive_seed(self.recipe.seed, "mixup", *place)
        return mix_batch(batch, alpha=train.mixup_alpha, seed=seed)

    def _evaluate(self) -> Asking[Evaluation]:
        found = yield from evaluation_pass(self.head, self.heldout, self.processes)
        self.watch.check_evaluation(found.loss, self)
        return found

    def _consider(self, evaluation: Evaluation, epoch: int) -> bool:
        """Keep the head's values if they are the best so far."""
        best = self.best
        if best is not None and (evaluation.accuracy, -evaluation.loss) <= (
            best.accuracy,
            -best.loss,
        ):
            return False
        values = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.best = Best(evaluation.accuracy, evaluation.loss, epoch, values)
        return True

    def draw_rows(self, num_clips: int | None) -> np.ndarray:
        """`num_clips` of the rows, or all, in order; the same ones in all trainings of a stream.

        The first ones would be of few classes where the store has them class by class.
        """
        if num_clips is None or num_clips >= len(self.rows):
            return self.rows
        seed = derive_seed(self.recipe.stream_seed, "statistics")
        return np.sort(np.random.default_rng(seed).choice(self.rows, num_clips, replace=False))

    def _recalibrate(self, num_clips: int | None) -> Asking[None]:
        """Choice: every process goes through all of the clips itself."""
        if self.how.recompute_statistics:
            rows = self.draw_rows(num_clips)
            for consume in recalibration_passes(self.head):
                yield MapPass(rows, partial(_give_maps, consume))

    def _objective(self) -> Objective:
        return Objective(self.head, self.how, self.processes)

    def _graphs(self) -> IterationGraphs | None:
        """Where iterations are captured: on one GPU, in a training on maps."""
        device = self.processes.device
        alone = self.processes.world_size == 1
        if device.type != "cuda" or not alone or self.recipe.train.cuda_graph == "off":
            return None
        return IterationGraphs(device)

    def _optimizer(self, parameters: dict[str, nn.Parameter]) -> ScheduledOptimizer:
        rates = {name: self._rate_of(name) for name in parameters}
        return ScheduledOptimizer(parameters, rates, self.how)

    def _rate_of(self, name: str) -> float:
        """Peak learning rate of a parameter."""
        return self.how.rate_of(name)

    def _sampler(self) -> EpochSampler:
        reading = self.recipe.reading
        kept = np.isin(self.feed.rows, self.rows)
        return EpochSampler(
            self.rows,
            self.how.batch_size,
            self.recipe.stream_seed,
            order=reading.order,
            class_balanced=reading.class_balanced,
            groups=self.feed.groups[kept],
            labels=self.feed.labels[kept],
            shards=self.feed.shards[kept] if reading.order == "shard" else None,
            origins=self._origins(kept),
            window=reading.shard_window,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )

    def _origins(self, kept: np.ndarray) -> np.ndarray | None:
        """Groups that UDL's two batches must not share; None: they share no clip, that is all.

        Raises:
            SettingsError: They are wanted, and there are not two.
        """
        if not self.udl or self.recipe.udl.validation_by == "clip":
            return None
        return require_groups(None if self.feed.origins is None else self.feed.origins[kept])


def require_groups(origins: np.ndarray | None) -> np.ndarray:
    """The numbers of the training rows' groups, where UDL's two batches can be of different ones.

    Raises:
        SettingsError: Clips tell no groups, or are all of one.
    """
    if origins is None:
        raise SettingsError(
            "udl.validation_by is group, and the clips tell no groups; set it to clip, or give "
            "the annotations a column of players, subjects or source videos"
        )
    if len(np.unique(origins)) < 2:
        raise SettingsError(
            "udl.validation_by is group, and the clips that are trained on are of one group; set "
            "it to clip"
        )
    return origins


def _give_maps(consume: Callable[[Tensor], None], batch: FeatureBatch) -> None:
    consume(batch.maps)


# ---- what an epoch has come to so far ----------------------------------------------------------


class Tally:
    """Sums over an epoch's clips, on the device until they are read.

    Args:
        head: Whose layers and neurons.
        processes: Whose clips count.

    Attributes:
        num_clips, num_correct, loss, usage: As they were at the last reading; `usage [L, N]` counts
            the samples of every neuron.
    """

    def __init__(self, head: torch.nn.Module, processes: Processes) -> None:
        dsts = dsts_of(head)
        options = None if dsts is None or not dsts.routes else dsts.options
        self.processes = processes
        self.seconds = 0.0
        self._num_neurons = 0 if options is None else options.num_neurons
        self._num_layers = 0 if options is None else options.num_layers
        num = 3 + self._num_layers * self._num_neurons
        self._sums = torch.zeros(num, dtype=torch.float64, device=processes.device)
        self.read()

    @torch.no_grad()
    def add(self, result: StepResult, batch: FeatureBatch) -> None:
        """One more batch of every process; nothing is read."""
        correct = (result.logits.argmax(dim=1) == batch.labels).sum()
        counts = [torch.full_like(correct, len(batch))[None], correct[None]]
        if self._num_layers:
            neurons = torch.arange(self._num_neurons, device=correct.device)
            parts = [
                torch.stack([record.choice for record in part if record.choice is not None])
                for part in result.records
            ]
            choices = torch.cat(parts, dim=1)  # [L, B]
            counts.append((choices[..., None] == neurons).sum(dim=1).flatten())
        total = self.processes.sum_numbers(torch.cat(counts)).to(self._sums)
        self._sums[0] += result.loss.to(self._sums) * total[0]
        self._sums[1:] += total

    def read(self) -> None:
        """Bring the sums to the host."""
        loss, num_clips, num_correct, *usage = self._sums.tolist()
        self.loss = loss
        self.num_clips = int(num_clips)
        self.num_correct = int(num_correct)
        counts = torch.tensor(usage, dtype=torch.int64)
        self.usage = counts.view(self._num_layers, self._num_neurons)

    @property
    def routing(self) -> Tensor | None:
        """The neurons that samples went to, `[n, L]`, in no particular order; None if none."""
        if not len(self.usage):
            return None
        neurons = torch.arange(self.usage.shape[1])
        return torch.stack([neurons.repeat_interleave(counts) for counts in self.usage], dim=1)

    def describe(self) -> str:
        """Loss, accuracy and the entropy of every layer's routing, in a line."""
        count = max(self.num_clips, 1)
        text = f"loss {self.loss / count:.3f}, accuracy {100 * self.num_correct / count:.1f} %"
        if not len(self.usage):
            return text
        shares = self.usage.double() / count
        return f"{text}, entropy " + " ".join(f"{usage_entropy(share):.2f}" for share in shares)

    def state(self) -> dict[str, Any]:
        """Plain values, for `load`."""
        names = "num_clips", "num_correct", "loss", "seconds"
        return {name: getattr(self, name) for name in names} | {"usage": self.usage.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from saved values."""
        self.seconds = state["seconds"]
        usage = [count for layer in state["usage"] for count in layer]
        sums = [state["loss"], state["num_clips"], state["num_correct"], *usage]
        self._sums.copy_(torch.tensor(sums, dtype=torch.float64))
        self.read()


# ---- a moving average of the weights -----------------------------------------------------------
#
# It often generalizes better than the last weights. `a <- m a + (1 - m) w` after every step, with
# `m = min(decay, (1 + n) / (10 + n))` after n steps, so that the start is forgotten. Source:
# Tarvainen & Valpola 2017 (mean teacher). Deviation: not in the paper; off by default.


class WeightAverage:
    """The average of a head's parameters; its buffers are not averaged but recomputed.

    Args:
        head: Whose parameters.
        decay: In (0, 1).
    """

    def __init__(self, head: nn.Module, decay: float) -> None:
        self.head = head
        self.decay = decay
        self.num_steps = 0
        self.values = {name: p.detach().clone() for name, p in head.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the head's present weights."""
        self.num_steps += 1
        share = 1.0 - min(self.decay, (1.0 + self.num_steps) / (10.0 + self.num_steps))
        parameters = [parameter.detach() for parameter in self.head.parameters()]
        torch._foreach_lerp_(list(self.values.values()), parameters, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the head has the averaged weights; then its own values, buffers too."""
        own = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self.head.load_state_dict(own)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the head the averaged weights for good."""
        for name, parameter in self.head.named_parameters():
            parameter.copy_(self.values[name])

    def load(self, values: dict[str, Tensor], num_steps: int) -> None:
        """Go on from a saved average."""
        for name, value in self.values.items():
            value.copy_(values[name])
        self.num_steps = num_steps


# ---- divergence --------------------------------------------------------------------------------

MAX_LOSS = 1e6  # above it a training counts as diverged
NUM_CLIPS_NAMED = 64


class Place(Protocol):
    """What of a training an error names."""

    head: nn.Module
    epoch: int
    num_steps: int


class NamesClips(Protocol):
    """A feed, as far as an error needs it."""

    def name_of(self, row: int) -> str: ...


class Watch:
    """Raises `SettingsError` where a training diverges, naming step, clips and last checkpoint.

    Args:
        feed: Knows the clips' ids.
        recipe: What is advised about.
    """

    def __init__(self, feed: NamesClips, recipe: Recipe) -> None:
        self.feed = feed
        self.recipe = recipe
        self.last_good = "none"

    def check_loss(self, loss: float, place: Place, made: Made) -> None:
        """A training loss that is not finite or above `MAX_LOSS` is an error."""
        if math.isfinite(loss) and loss <= MAX_LOSS:
            return
        clips = [self.feed.name_of(row) for row in made.rows.tolist()]
        named = ", ".join(clips[:NUM_CLIPS_NAMED])
        more = len(clips) - NUM_CLIPS_NAMED
        raise self._error(
            f"the loss is {loss:g}",
            place.epoch,
            made.num_steps,
            f"batch {made.position + 1}; its clips: {named}"
            f"{f' and {more} more' if more > 0 else ''}",
        )

    def check_evaluation(self, loss: float, place: Place) -> None:
        """A held-out loss that is not finite is an error."""
        if not math.isfinite(loss):
            self._refuse_epoch(f"the held-out loss is {loss:g}", place)

    def check_weights(self, place: Place) -> None:
        """Weights or statistics that are not finite are an error; called before they are saved."""
        for name, value in place.head.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                self._refuse_epoch(f"{name} holds NaN or infinity", place)

    def _refuse_epoch(self, found: str, place: Place) -> NoReturn:
        raise self._error(found, place.epoch, place.num_steps, "after its last batch")

    def _error(self, found: str, epoch: int, num_steps: int, where: str) -> SettingsError:
        return SettingsError(
            f"training diverged: {found} in epoch {epoch}, step {num_steps} ({where}); "
            f"last good checkpoint: {self.last_good}; lower "
            f"{self.recipe.section}.learning_rate (now {self.recipe.learning.learning_rate:g}) or "
            f"set {self.recipe.section}.clip_norm"
        )
