"""An ablation by several processes, each with a share of the trainings and of the threads.

Small matrices gain little from a second thread; two processes of one thread each use two cores.
Every process reads every batch, from maps in memory that all of them share.

Enters: plans. Leaves: finished runs on disk. A process that ends before its time ends the others,
which save; SIGTERM is passed on; a process whose parent is gone leaves, too.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from dsts_pipeline.base.children import end_with_parent
from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.progress import console
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn.ablation.member import Status
from dsts_pipeline.learn.ablation.plan import RunPlan
from dsts_pipeline.learn.ablation.runs import Runs
from dsts_pipeline.learn.ablation.together import Tell
from dsts_pipeline.learn.stopping import StopRequest, TrainingStopped, stop_on_sigterm

TELL_INTERVAL_SECONDS = 0.5


def share_out(plans: Sequence[RunPlan], num_jobs: int) -> list[list[RunPlan]]:
    """Plans for each process, of about equal work; as many shares as there is work for."""
    shares: list[list[RunPlan]] = [[] for _ in range(num_jobs)]
    loads = [0.0] * num_jobs
    for plan in sorted(plans, key=work_of, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(plan)
        loads[least] += work_of(plan)
    return [share for share in shares if share]


def work_of(plan: RunPlan) -> float:
    """Rough cost of a training, in layers that run forward once for each clip."""
    if plan.kind != "dsts":
        return 0.2 * plan.options.num_epochs
    layers = int(plan.head.get("num_layers", 3))
    # Without synapse all neurons run; measured at 3.5 times the time of ten neurons' selected one.
    everyone = 1.0 if plan.head.get("synapse", True) else 3.5
    return layers * everyone * (4.0 if plan.options.udl else 1.0) * plan.options.num_epochs


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
        arguments = (runs, share, feed, device, num_threads, stop.exit_status, told, os.getpid())
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
        else:
            failures |= value
            left -= 1
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
    told: Any,
    parent: int,
) -> None:
    """One process: train a share, and tell."""
    console.quiet = True
    torch.set_num_threads(num_threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent asks by SIGTERM
    last = 0.0
    with stop_on_sigterm(exit_status) as stop:

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
        except TrainingStopped:
            told.put(("stopped", None))
        except UserError as error:
            told.put(("error", error))
