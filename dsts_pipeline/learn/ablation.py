"""The trainings of an ablation: plans, what is finished on disk, how the rest is trained and shown.

Enters: plans, the feed of the training split, where to keep things. Leaves: a folder per run with
`history.json`, `head.safetensors` and, written last, `head.json`. A run that has those is finished:
it is never trained again, whatever variants come later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from safetensors.torch import save
from torch import nn

from dsts_pipeline.base.children import (
    Budget,
    BudgetOver,
    StopRequest,
    TrainingStopped,
    end_with_parent,
    stop_on_sigterm,
)
from dsts_pipeline.base.errors import SettingsError, UserError
from dsts_pipeline.base.files import read_signed, sha256_json, sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.base.settings import HeadSettings, Kind
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import (
    ConvBlockHead,
    DSTSHead,
    ReadoutHead,
    count_parameters,
    save_head,
)
from dsts_pipeline.head.building import Attributes, new_head, new_probe
from dsts_pipeline.head.dsts import readout_options, take_over, takes_over
from dsts_pipeline.head.probes import OwnHead
from dsts_pipeline.learn.estimate import estimate_seconds, tell_seconds
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.resume import CheckpointOptions, digest_sources
from dsts_pipeline.learn.steps import upstream_of
from dsts_pipeline.learn.together import Member, Status, Tell, Together
from dsts_pipeline.learn.train import check_clips, fit_recipe
from dsts_pipeline.learn.training import Recipe, order_of

# ---- one training --------------------------------------------------------------------------------

Estimates = dict[tuple[str, int], float]
"""Seconds of work by name and seed of a training."""


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A head of a kind, trained with a seed.

    Args:
        name: Of the variant.
        kind: "dsts", the head of the settings, or an opponent on the same maps: "baseline" (the
            backbone's own classifier as it is), "continued_classifier" (the same, trained on),
            "linear_probe" (from random values), "attentive_probe", "conv_block" (one 3x3x3 block of
            as many parameters).
        head: Of the head of the settings. Opponents have its readout: all but the baseline its
            dropout, the attentive probe also depth, heads and width, the block everything.
        recipe: Of the training; its seed is this run's.
        adapted: How the recipe was fitted to the clips, in words; no part of the key.
        paired: Whether it takes UDL's pairs of batches, as `Runs.fit` finds; no part of the key.
    """

    name: str
    kind: Kind
    head: HeadSettings
    recipe: Recipe
    adapted: str = ""
    paired: bool = False

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.recipe.seed

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.kind != "baseline"

    @property
    def is_dsts(self) -> bool:
        """Whether a DSTS head is trained."""
        return self.kind == self.head.kind == "dsts"

    def key(self, store: str, own: OwnHead | None) -> str:
        """Twelve digits of all that decides the trained head: equal keys, equal heads.

        The code of feed, head and learn counts: figures of other code are other figures.

        Args:
            store: Its `division`: maps, splits and groups.
            own: The backbone's own head, where there is one.
        """
        decided: dict[str, Any] = {"kind": self.kind, "store": store, "torch": torch.__version__}
        if self.is_trained:
            decided |= {"recipe": self.recipe.to_json(), "sources": digest_sources()}
        if self.kind in ("dsts", "conv_block"):
            decided["head"] = _plain(self.head)
        elif self.is_trained:
            decided["head"] = self._readout()
        if start := self._start_of(own):
            decided["own_head"] = _digest(start)
        return sha256_json(decided)[:12]

    def _start_of(self, own: OwnHead | None) -> OwnHead | None:
        """The backbone's own head, where this one starts from it."""
        is_own = self.kind in ("baseline", "continued_classifier")
        starts = is_own or (self.kind == "dsts" and own is not None and takes_over(self.head, own))
        return own if starts else None

    def folder_name(self, store: str, own: OwnHead | None) -> str:
        """Name of the folder that the trained head is kept in: variants that are trained alike,
        whatever they are called, share it."""
        seed = f"-seed{self.seed}" if self.is_trained else ""
        return f"{self.kind}{seed}-{self.key(store, own)}"

    def build(
        self, sizes: tuple[int, int], own: OwnHead | None, attributes: Attributes = ()
    ) -> nn.Module:
        """The untrained head; draws from torch's global generator, which it seeds.

        Args:
            sizes: Channels of the maps, number of classes.
            own: The backbone's own head, where there is one.
            attributes: Of the classes, for heads that ask for them.

        Raises:
            SettingsError: The head's arguments exclude each other, or it is the backbone's
                classifier and there is none for these classes.
        """
        stream = "dsts" if self.kind == "dsts" else "linear_probe"
        torch.manual_seed(derive_seed(self.seed, stream))
        if own is None and self.kind in ("baseline", "continued_classifier"):
            raise SettingsError(
                f"variant {self.name} is the backbone's own classifier, and no classifier of this "
                f"backbone fits {sizes[0]} channels and {sizes[1]} classes; leave the variant out, "
                "or name the backbone.weights that were trained on these classes"
            )
        try:
            head = self._new_head(sizes, own, attributes)
        except ValueError as error:
            raise SettingsError(f"variant {self.name}: {error}") from None
        if start := self._start_of(own):
            take_over(head, start)
        return head

    def _new_head(
        self, sizes: tuple[int, int], own: OwnHead | None, attributes: Attributes
    ) -> ReadoutHead:
        if self.kind == "dsts":
            return new_head(self.head, sizes, attributes)
        if self.kind in ("linear_probe", "attentive_probe"):
            return new_probe(self.kind, self.head, sizes)
        if self.kind == "conv_block":
            module = DSTSHead.from_settings(*sizes, self.head)
            same = count_parameters(module, with_pooler=False)
            return ConvBlockHead(*sizes, num_parameters=same, **readout_options(self.head))
        start = self._start_of(own)
        assert start is not None
        return type(start)(**start.config | self._readout())

    def _readout(self) -> dict[str, Any]:
        """Arguments of an opponent that is a readout alone; none for the baseline."""
        options = readout_options(self.head)
        names = {
            "attentive_probe": [name for name in options if name != "readout"],
            "linear_probe": ("readout_dropout",),
            "continued_classifier": ("readout_dropout",),
        }
        return {name: options[name] for name in names.get(self.kind, ())}


def stream_of(plan: RunPlan) -> tuple[Any, ...]:
    """What decides which batches a training goes through: runs that agree can share them.

    UDL's pairs train on the same batches, in the same order, that an ordinary epoch has, so the
    two share them; pairs that are class-balanced or of different groups are dealt out otherwise.
    """
    recipe = plan.recipe
    by_group = plan.paired and recipe.udl.validation_by == "group"
    return *_batches_of(recipe), by_group, plan.paired and recipe.reading.class_balanced


def _batches_of(recipe: Recipe) -> tuple[Any, ...]:
    """Of the recipe, what decides the batches and the held-out clips."""
    return (
        recipe.stream_seed,
        recipe.train.batch_size,
        recipe.train.heldout_fraction,
        recipe.train.heldout_by,
        *order_of(recipe.reading).values(),
    )


def _fit(
    plan: RunPlan,
    store: FeatureStore,
    paired: Set[tuple[str, Kind]],
    batches_of_pairs: Set[tuple[Any, ...]],
) -> RunPlan:
    """One plan of `Runs.fit`: which plans take pairs, and the batches of those that do."""
    if not plan.is_trained:
        return plan
    rows = store.rows_of_split("train")
    cut_as_pairs = _batches_of(plan.recipe) in batches_of_pairs
    takes_pairs = (plan.name, plan.kind) in paired
    try:
        recipe, adapted = fit_recipe(store, rows, plan.recipe, paired=cut_as_pairs)
        check_clips(store, rows, recipe, paired=takes_pairs)
    except SettingsError as error:
        raise SettingsError(f"variant {plan.name}: {error}") from None
    return dataclasses.replace(plan, recipe=recipe, adapted=adapted, paired=takes_pairs)


def _plain(head: HeadSettings) -> dict[str, Any]:
    """What decides a head's shape and passes."""
    return head.model_dump(mode="json", exclude={"take_over_classifier"})


def _digest(own: OwnHead) -> str:
    return hashlib.sha256(save(own.state_dict())).hexdigest()


# ---- the trainings -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where runs are kept, and what all of them are made of.

    Args:
        root: Folder of the finished runs' folders.
        checkpoints: Folder of the unfinished ones' checkpoints.
        store: Fingerprint of the maps.
        division: Of the store: its maps, and which of them are trained on.
        attributes: The values of each class, where the data set tells them.
        sizes: Channels of the maps, number of classes.
        own: The backbone's own head, where there is one.
        made_of: What every head's file says of its making.
        every_batches: Checkpoints after so many batches, and after every epoch.
        num_together: Trainings in memory at a time, at most.
    """

    root: Path
    checkpoints: Path
    store: str
    sizes: tuple[int, int]
    own: OwnHead | None
    made_of: dict[str, Any]
    every_batches: int | None = None
    num_together: int = 64
    division: str = ""
    attributes: Attributes = ()

    def folder(self, plan: RunPlan) -> Path:
        """The run's folder, there or not."""
        return self.root / plan.folder_name(self.division or self.store, self.own)

    def is_finished(self, plan: RunPlan) -> bool:
        """Whether its trained head is there."""
        return (self.folder(plan) / "head.json").exists()

    def history(self, plan: RunPlan) -> list[dict[str, Any]]:
        """An entry per epoch of a finished run."""
        return read_signed(self.folder(plan) / "history.json")["epochs"]

    def heldout(self, plan: RunPlan) -> tuple[float, float] | None:
        """Accuracy and loss of what a finished run kept, be it the untrained head; None where no
        clips were held out, or nothing was trained."""
        last = (self.history(plan) or [{}])[-1]
        return (last["best_accuracy"], last["best_loss"]) if "best_accuracy" in last else None

    def unfinished(self, plans: Sequence[RunPlan]) -> list[RunPlan]:
        """Those to train, each once, those of one order of batches side by side."""
        wanted: dict[Path, RunPlan] = {}
        for plan in plans:
            if not self.is_finished(plan):
                wanted.setdefault(self.folder(plan), plan)
        return sorted(wanted.values(), key=lambda plan: repr(stream_of(plan)))

    def fit(self, plans: Sequence[RunPlan], stores: Sequence[FeatureStore]) -> list[list[RunPlan]]:
        """Per store the plans, with batches that its clips fill (`fit_recipe`).

        Every head is built and all clips are looked at, so that what can't train is told first.
        Plans of the same batches are cut alike, for UDL's pairs where one of them takes pairs:
        variants stay comparable, and the linear probe is the one of `train-head`.

        Args:
            stores: The store, or its folds, each with a training split of its own.

        Raises:
            SettingsError: A head can't be built, or there are too few clips.
        """
        paired = set[tuple[str, Kind]]()
        batches_of_pairs = set[tuple[Any, ...]]()
        for plan in {(plan.name, plan.kind): plan for plan in plans}.values():
            head = plan.build(self.sizes, self.own, self.attributes)
            if plan.recipe.udl.enabled and upstream_of(head):
                paired.add((plan.name, plan.kind))
        for plan in plans:
            if (plan.name, plan.kind) in paired:
                batches_of_pairs.add(_batches_of(plan.recipe))
        return [[_fit(plan, store, paired, batches_of_pairs) for plan in plans] for store in stores]

    def save(self, plan: RunPlan, head: nn.Module, history: list[dict[str, Any]]) -> None:
        """Keep a trained head."""
        folder = self.folder(plan)
        adapted = {"adapted": plan.adapted} if plan.adapted else {}
        write_json(folder / "history.json", sign({"epochs": history} | adapted))
        run = {"recipe": plan.recipe.to_json(), "head": _plain(plan.head)}
        of_run = {"variant": plan.name, "seed": plan.seed, "title": plan.name, "run": run}
        save_head(folder, head, self.made_of | {"store": self.store} | of_run | adapted)

    def train(
        self,
        plans: Sequence[RunPlan],
        feed: FeatureFeed,
        device: torch.device,
        *,
        tell: Tell = lambda statuses: None,
        stop: StopRequest | None = None,
    ) -> dict[Path, str]:
        """Train `plans` in as few passes as their orders of batches allow.

        Returns:
            Why each that diverged did so, by its folder.

        Raises:
            TrainingStopped: A stop was asked for; all are saved.
        """
        for plan in plans:
            if not plan.is_trained:
                self.save(plan, plan.build(self.sizes, self.own, self.attributes), [])
        told: dict[Path, str] = {}
        trained = [plan for plan in plans if plan.is_trained]
        for _, alike in groupby(trained, key=lambda plan: repr(stream_of(plan))):
            of_stream = list(alike)
            for start in range(0, len(of_stream), self.num_together):
                if stop is not None and stop.budget.is_over:
                    raise BudgetOver("no time for another epoch")
                part = of_stream[start : start + self.num_together]
                members = [self._member(plan, feed, device) for plan in part]
                on_finished = partial(self._keep, dict(zip(members, part, strict=True)))
                Together(members, feed, device, tell=tell, on_finished=on_finished, stop=stop).run()
                for member, plan in zip(members, part, strict=True):
                    if member.failure is not None:
                        told[self.folder(plan)] = member.describe_failure()
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()
        return told

    def estimate(
        self, plans: Sequence[RunPlan], feed: FeatureFeed, device: torch.device
    ) -> Estimates:
        """Seconds of each training by itself, from its first steps.

        One of each kind of head is measured, with UDL and without, and others of other work for
        `ESTIMATE_SECONDS`; what is left is judged by its cost beside those of its kind: rough costs
        compare a head with its variants, and no probe with a DSTS head.
        """
        began = time.monotonic()
        measured: dict[str, float] = {}
        of_kind: dict[Any, list[tuple[float, float]]] = {}  # seconds and rough cost
        for plan in (plan for plan in plans if plan.is_trained):
            work = _work_of(plan)
            is_late = time.monotonic() - began > ESTIMATE_SECONDS
            if work in measured or (is_late and _kind_of(plan) in of_kind):
                continue
            build = partial(plan.build, self.sizes, self.own, self.attributes)
            with suppress(SettingsError):  # it diverges at once: the training will say so
                processes = Processes(device=device)
                measured[work] = estimate_seconds(build, feed, plan.recipe, processes)
                of_kind.setdefault(_kind_of(plan), []).append((measured[work], cost_of(plan)))
        found: Estimates = {}
        for plan in (plan for plan in plans if plan.is_trained):
            known = of_kind.get(_kind_of(plan), [])  # none where all of its kind diverge
            per_cost = sum(s for s, _ in known) / max(sum(c for _, c in known), 1e-9)
            rough = per_cost * cost_of(plan)
            found[plan.name, plan.seed] = measured.get(_work_of(plan), rough)
        return found

    def _keep(self, plans: dict[Member, RunPlan], member: Member) -> None:
        self.save(plans[member], member.training.head, member.training.history)

    def _member(self, plan: RunPlan, feed: FeatureFeed, device: torch.device) -> Member:
        identity = {"store": self.division or self.store}
        checkpoints = CheckpointOptions(self.checkpoints, identity, self.every_batches)
        build = partial(plan.build, self.sizes, self.own, self.attributes)
        return Member(plan.name, build, feed, plan.recipe, Processes(device=device), checkpoints)


ESTIMATE_SECONDS = 10.0
# What changes the way of a training and not its length.
OF_NO_LENGTH = {"learning_rate", "weight_decay", "data_seed"}
NUM_TOLD = 4


def _kind_of(plan: RunPlan) -> tuple[str, str, bool]:
    return plan.kind, plan.head.kind, plan.recipe.udl.enabled


def _work_of(plan: RunPlan) -> str:
    """Equal for trainings that take equally long."""
    recipe = plan.recipe
    train = recipe.train.model_dump(mode="json", exclude=OF_NO_LENGTH)
    return repr((plan.kind, plan.head, train, recipe.udl))


# ---- several processes ---------------------------------------------------------------------------
#
# Small matrices gain little from a second thread; two processes of one thread each use two cores.
# Every process reads every batch, from maps in memory that all of them share. A process that ends
# before its time ends the others, which save; SIGTERM is passed on; a process whose parent is gone
# leaves, too.

TELL_INTERVAL_SECONDS = 0.5


def share_out(plans: Sequence[RunPlan], num_jobs: int) -> list[list[RunPlan]]:
    """Plans for each process, of about equal work; as many shares as there is work for."""
    shares: list[list[RunPlan]] = [[] for _ in range(num_jobs)]
    loads = [0.0] * num_jobs
    for plan in sorted(plans, key=cost_of, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(plan)
        loads[least] += cost_of(plan)
    return [share for share in shares if share]


def cost_of(plan: RunPlan) -> float:
    """Rough cost of a training, in layers that run forward once for each clip."""
    num_epochs = plan.recipe.train.num_epochs
    if not plan.is_dsts:
        return 0.2 * num_epochs
    # Without synapse all neurons run; measured at 3.5 times the time of ten neurons' selected one.
    everyone = 1.0 if plan.head.synapse else 3.5
    of_udl = 4.0 if plan.recipe.udl.enabled else 1.0
    return plan.head.num_layers * everyone * of_udl * num_epochs


def train_in_processes(
    runs: Runs,
    plans: Sequence[RunPlan],
    feed: FeatureFeed,
    device: torch.device,
    *,
    num_jobs: int,
    tell: Tell,
    stop: StopRequest,
) -> dict[Path, str]:
    """`Runs.train` by `num_jobs` processes.

    Raises:
        TrainingStopped: A stop was asked for; all are saved.
        UserError: A process met an error, which is told, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    shares = share_out(plans, num_jobs)
    num_threads = max(1, torch.get_num_threads() // len(shares))
    processes: list[SpawnProcess] = []
    for share in shares:
        status = stop.exit_status
        minutes = stop.budget.minutes_left
        arguments = (runs, share, feed, device, num_threads, status, minutes, told, os.getpid())
        processes.append(context.Process(target=_work, args=arguments))
    try:
        for process in processes:
            process.start()
        return _follow(processes, told, tell, stop)
    finally:
        _end(processes, told)


def _follow(
    processes: Sequence[SpawnProcess], told: Any, tell: Tell, stop: StopRequest
) -> dict[Path, str]:
    failures: dict[Path, str] = {}
    left = len(processes)
    is_over = False
    while left:
        if stop.requested:
            _end(processes, told)
            raise _stopped(stop)
        try:
            kind, value = told.get(timeout=TELL_INTERVAL_SECONDS)
        except queue.Empty:
            killed = [p for p in processes if p.exitcode not in (None, 0)]
            if killed:
                raise UserError(
                    f"a process of the ablation ended with status {killed[0].exitcode} before its "
                    "time (out of memory?); the same command goes on from the checkpoints"
                ) from None
            continue
        if kind == "status":
            tell(value)
        elif kind == "error":
            raise value
        elif kind == "stopped":  # the signal reached a process only
            raise _stopped(stop)
        elif kind == "over":  # others may have time for another epoch
            is_over = True
            left -= 1
        else:
            failures |= value
            left -= 1
    if is_over:
        raise BudgetOver("no time for another epoch")
    return failures


def _stopped(stop: StopRequest) -> TrainingStopped:
    text = "asked to stop: trainings saved; the same command goes on from there"
    return TrainingStopped(text, stop.exit_status)


def _end(processes: Sequence[SpawnProcess], told: Any) -> None:
    """Ask those that still work to save and leave, and wait for them.

    A process only ends when what it told was taken out of the queue.
    """
    for process in processes:
        if process.is_alive():
            process.terminate()
    while any(process.is_alive() for process in processes):
        with suppress(queue.Empty):
            told.get(timeout=0.1)
    for process in processes:
        if process.pid is not None:
            process.join()


def _work(
    runs: Runs,
    plans: list[RunPlan],
    feed: FeatureFeed,
    device: torch.device,
    num_threads: int,
    exit_status: int,
    minutes: float | None,
    told: Any,
    parent: int,
) -> None:
    """One process: train a share, and tell."""
    console.quiet = True
    torch.set_num_threads(num_threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent asks by SIGTERM
    last = 0.0
    with stop_on_sigterm(exit_status, Budget(minutes)) as stop:

        def save_and_leave() -> None:
            told.cancel_join_thread()  # nobody takes out of the queue any more
            stop.requested = True

        end_with_parent(parent, on_loss=save_and_leave)

        def tell(statuses: Sequence[Status]) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= TELL_INTERVAL_SECONDS or all(s.finished for s in statuses):
                last = now
                told.put(("status", list(statuses)))

        try:
            told.put(("end", runs.train(plans, feed, device, tell=tell, stop=stop)))
        except BudgetOver:
            told.put(("over", None))
        except TrainingStopped:
            told.put(("stopped", None))
        except UserError as error:
            told.put(("error", error))


# ---- what is shown -------------------------------------------------------------------------------
#
# On a terminal a table that moves, else a line after ten seconds, then one a minute: loss and
# accuracy of each variant (means over its seeds), the epoch, the share of the work that is done and
# the time left.

LINE_INTERVAL_SECONDS = 60.0
FIRST_LINE_SECONDS = 10.0
MAX_LIVE_ROWS = 40
PRIOR_SECONDS = 20.0  # of work, for which the estimate stands


class Display:
    """Keeps the last status of every training; any number of processes may tell theirs.

    Args:
        num_runs: Trainings in all.
        show: Called whenever something was told.
        estimates: How long each is expected to take by itself; without them all weigh the same.
        num_jobs: Processes that share them.
    """

    def __init__(
        self,
        num_runs: int,
        show: Callable[[Display], None],
        estimates: Estimates | None = None,
        num_jobs: int = 1,
    ) -> None:
        self.num_runs = num_runs
        self._show = show
        self._estimates = estimates or {}
        self._num_jobs = num_jobs
        self.statuses: dict[tuple[str, int], Status] = {}
        self._start: float | None = None
        self._done_before: dict[tuple[str, int], float] = {}

    def tell(self, statuses: Sequence[Status]) -> None:
        """Take in what trainings say of themselves."""
        if self._start is None:
            self._start = time.monotonic()
        for status in statuses:
            key = status.name, status.seed
            self._done_before.setdefault(key, status.done)
            self.statuses[key] = status
        self._show(self)

    @property
    def done(self) -> float:
        """Share of the work that is done, 0 to 1."""
        keys = self.statuses
        done = sum(self._weigh(key) * _share_of(status) for key, status in keys.items())
        return done / max(self._whole, 1e-9)

    def seconds_left(self) -> float | None:
        """By the pace of this run, without what was done before; None: nothing is known yet.

        The first steps' estimate counts as work that went by at the estimated pace, so that the
        pace of the first batches alone decides nothing.
        """
        done = {key: _share_of(status) for key, status in self.statuses.items()}
        made = sum(self._weigh(key) * (done[key] - self._done_before[key]) for key in done)
        elapsed = 0.0 if self._start is None else time.monotonic() - self._start
        if self._estimates:
            made += PRIOR_SECONDS
            elapsed += PRIOR_SECONDS / self._num_jobs
        if made <= 0:
            return None
        return self._whole * (1.0 - self.done) * elapsed / made

    def time_left(self) -> str:
        """Such as "12 min left"."""
        seconds = self.seconds_left()
        return "time left not known yet" if seconds is None else f"{tell_seconds(seconds)} left"

    def left_of(self, name: str) -> str:
        """The part of the time left that a variant takes, such as "4 min"; "-": not known."""
        left = self.seconds_left()
        if left is None or not self._estimates:
            return "-"
        own = {key: weight for key, weight in self._estimates.items() if key[0] == name}
        statuses = self.statuses
        work = sum(w * (1.0 - _share_of(statuses[k])) for k, w in own.items() if k in statuses)
        whole = self._whole * (1.0 - self.done)
        return tell_seconds(left * work / whole) if whole > 0 else "0 s"

    def describe_estimates(self) -> str:
        """Before anything is trained: in all, and of the variants that take longest."""
        total = sum(self._estimates.values()) / self._num_jobs
        parts: dict[str, list[float]] = {}
        for (name, _), seconds in self._estimates.items():
            parts.setdefault(name, []).append(seconds)
        longest = sorted(parts, key=lambda name: -sum(parts[name]))
        told = [f"{n} {len(parts[n])} x {tell_seconds(parts[n][0])}" for n in longest[:NUM_TOLD]]
        if more := longest[NUM_TOLD:]:
            rest = sum(sum(parts[name]) for name in more)
            told.append(f"{len(more)} more, {tell_seconds(rest)} together")
        jobs = f" by {self._num_jobs} processes" if self._num_jobs > 1 else ""
        return f"about {tell_seconds(total)} of training{jobs}: {'; '.join(told)}"

    @property
    def _whole(self) -> float:
        """Work of all trainings; those that no estimate names weigh 1."""
        return sum(self._estimates.values()) or float(self.num_runs)

    def _weigh(self, key: tuple[str, int]) -> float:
        return self._estimates.get(key, 0.0 if self._estimates else 1.0)

    def by_variant(self) -> dict[str, list[Status]]:
        """The statuses of each variant, in the order of their first appearance."""
        found: dict[str, list[Status]] = {}
        for status in self.statuses.values():
            found.setdefault(status.name, []).append(status)
        return found


def _share_of(status: Status) -> float:
    return 1.0 if status.failure else status.done


def describe(name: str, statuses: Sequence[Status]) -> str:
    """One variant in a few words: means over its seeds."""
    failed = sum(status.failure is not None for status in statuses)
    going = [status for status in statuses if status.failure is None] or list(statuses)
    text = f"{name} loss {_mean([s.loss for s in going]):.2f}"
    text += f" acc {100 * _mean([s.accuracy for s in going]):.0f} %"
    held = [s.heldout_accuracy for s in going if s.heldout_accuracy is not None]
    if held:
        text += f" held-out {100 * _mean(held):.0f} %"
    return text + (f" ({failed} diverged)" if failed else "")


def live_table(display: Display) -> Table:
    """A row per variant."""
    table = Table(title="Ablation: training", title_justify="left")
    for heading in ("variant", "seeds", "epoch", "loss", "accuracy", "held-out", "left", "state"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, statuses in list(display.by_variant().items())[:MAX_LIVE_ROWS]:
        held = [s.heldout_accuracy for s in statuses if s.heldout_accuracy is not None]
        failed = sum(s.failure is not None for s in statuses)
        finished = sum(s.finished for s in statuses)
        state = f"{failed} diverged" if failed else f"{finished} done" if finished else "trains"
        epochs = sorted({s.epoch for s in statuses})
        table.add_row(
            name,
            str(len(statuses)),
            f"{'-'.join(map(str, epochs))}/{statuses[0].num_epochs}",
            f"{_mean([s.loss for s in statuses]):.3f}",
            f"{100 * _mean([s.accuracy for s in statuses]):.1f} %",
            f"{100 * _mean(held):.1f} %" if held else "-",
            display.left_of(name),
            state,
        )
    table.add_section()
    bar = ProgressBar(total=1.0, completed=display.done, width=20)
    table.add_row(bar, "", "", "", "", "", f"{100 * display.done:.0f} %", display.time_left())
    return table


@contextmanager
def show_ablation(
    num_runs: int, estimates: Estimates | None = None, num_jobs: int = 1
) -> Iterator[Display]:
    """Show the training of `num_runs` heads; arguments as `Display` has them."""
    if not console.is_terminal:
        yield Display(num_runs, _Lines(), estimates, num_jobs)
        return
    with Live(console=console, refresh_per_second=2) as live:
        show = Display(
            num_runs, lambda display: live.update(live_table(display)), estimates, num_jobs
        )
        yield show


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + FIRST_LINE_SECONDS
        self._ended = False

    def __call__(self, display: Display) -> None:
        now = time.monotonic()
        ends = all(s.finished or s.failure for s in display.statuses.values())
        ends = ends and len(display.statuses) == display.num_runs
        if (now < self._next and not ends) or self._ended:
            return
        self._next = now + LINE_INTERVAL_SECONDS
        self._ended = ends
        known = display.by_variant()
        told = []
        for name, statuses in known.items():
            left = display.left_of(name)
            told.append(describe(name, statuses) + ("" if left == "-" else f", {left} left"))
        console.print(
            f"ablate: {100 * display.done:.0f} % of {display.num_runs} trainings, "
            f"{display.time_left()}; " + "; ".join(told),
            soft_wrap=True,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
